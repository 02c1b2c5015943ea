import { assertEquals, assertThrows } from "@std/assert";
import { partitionByBlocks, partitionBySize, planReductions, sliceOf } from "./zero_partition.ts";

Deno.test("partitionByBlocks() gives each rank neighbouring parameters, all of them once", () => {
  const counts = [8, 4, 4, 4, 4, 8], owned = partitionByBlocks(counts, 4);
  assertEquals(owned, [[0], [1, 2], [3, 4], [5]]);
  assertEquals(partitionByBlocks([100, 1, 1], 4), [[0], [1, 2], [], []]);
});

Deno.test("sliceOf() cuts a padded parameter in equal slices that cover it", () => {
  const slices = [0, 1, 2, 3].map((rank) => sliceOf(10, { ranks: 4, rank }));
  assertEquals(slices.map(({ begin, end }) => [begin, end]), [[0, 3], [3, 6], [6, 9], [9, 12]]);
  assertEquals(slices[0]!.padded, 12);
});

Deno.test("zero partition refuses what cannot be divided", () => {
  assertThrows(() => partitionBySize([1], 0), RangeError, "over 0 ranks");
  assertThrows(() => planReductions([[1]], 0), RangeError, "reduce_bucket_size");
});
