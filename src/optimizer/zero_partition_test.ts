import { assertEquals, assertThrows } from "@std/assert";
import { partitionByBlocks, partitionBySize, planReductions } from "./zero_partition.ts";

Deno.test("partitionByBlocks() gives each rank neighbouring parameters, all of them once", () => {
  const counts = [8, 4, 4, 4, 4, 8], owned = partitionByBlocks(counts, 4);
  assertEquals(owned, [[0], [1, 2], [3, 4], [5]]);
  assertEquals(partitionByBlocks([100, 1, 1], 4), [[0], [1, 2], [], []]);
});

Deno.test("partitionBySize() deals to more ranks than a function takes arguments", () => {
  assertEquals(partitionBySize([3, 5], 300_000).slice(0, 3), [[1], [0], []]);
});

Deno.test("zero partition refuses what cannot be divided", () => {
  assertThrows(() => partitionBySize([1], 0), RangeError, "over 0 ranks");
  assertThrows(() => planReductions([[1]], 0), RangeError, "reduce_bucket_size");
});
