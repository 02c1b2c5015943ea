import { assertEquals } from "@std/assert";
import { RandomState } from "./mt19937.ts";
import { packWithCut } from "./packed_dataset.ts";

Deno.test("packWithCut() cuts samples at the ends of rows and of segments", () => {
  const inOrder = [[11, 12], [13, 14, 15, 16, 17], [18, 19, 20], [21, 22, 23, 24, 25, 26]];
  // Stored so that the fixed shuffle brings them into this order.
  const order = new RandomState(1024).permutation(inOrder.length);
  const stored: number[][] = [];
  order.forEach((index, k) => stored[index] = inOrder[k]);
  const rows = packWithCut(
    {
      path: "a.bin",
      lengths: stored.map((sample) => sample.length),
      totalTokens: 16,
      read: (index) => Int32Array.from(stored[index]),
    },
    { seqLen: 4, packedLength: 8 },
  );
  assertEquals(rows.length, 2);
  const [first, second] = [rows.row(0), rows.row(1)];
  assertEquals([...first.tokens], [11, 12, 13, 14, 15, 16, 17, 18]);
  assertEquals([...first.labels], [12, -100, 14, 15, 16, 17, -100, 19]);
  assertEquals([...first.indexes], [0, 1, 0, 1, 2, 3, 0, 0]);
  assertEquals(first.cuSeqlens, [0, 2, 6, 7, 8]);
  assertEquals([...second.tokens], [19, 20, 21, 22, 23, 24, 25, 26]);
  assertEquals([...second.labels], [20, -100, 22, 23, 24, 25, 26, -100]);
  assertEquals([...second.indexes], [0, 1, 0, 1, 2, 3, 0, 1]);
  assertEquals(second.cuSeqlens, [0, 2, 6, 8]);
});
