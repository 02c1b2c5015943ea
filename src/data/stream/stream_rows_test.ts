import { assertEquals, assertRejects } from "@std/assert";
import type { DocumentStream } from "./document_stream.ts";
import { createStreamRows } from "./stream_rows.ts";

/** A stream over lists of tokens, written as JSON. */
function streamOf(lists: readonly (readonly number[])[]): DocumentStream {
  const beginning = { block: 0, index: 0, corrupt: 0, opened: 0, turn: 0, open: [] };
  let epoch = 0, index = 0;
  const documents = lists.map((list) => ({ text: JSON.stringify(list), where: "", path: "" }));
  return {
    peek: () => Promise.resolve(documents[index]),
    advance: () => void index++,
    nextEpoch: () => {
      epoch++;
      index = 0;
      return Promise.resolve();
    },
    place: () => ({ ...beginning, epoch, index }),
    close: () => Promise.resolve(),
  };
}

const rowsOf = (lists: readonly (readonly number[])[], fill: boolean, packedLength = 10) =>
  createStreamRows({
    stream: streamOf(lists),
    encode: ({ text }) => Int32Array.from(JSON.parse(text)),
    packedLength,
    fill,
  });

const samples = [[1, 2], [3, 4], [5, 6, 7], [8, 9, 10, 11, 12], [13, 14]];

Deno.test("createStreamRows() pads: whole documents as long as they fit, the end of the epoch too", async () => {
  const rows = rowsOf(samples, false);
  const [first, second, third] = [await rows.next(), await rows.next(), await rows.next()];
  assertEquals([...first!.tokens], [1, 2, 3, 4, 5, 6, 7, 0, 0, 0]);
  assertEquals(first!.cuSeqlens, [0, 2, 4, 7, 10]);
  assertEquals([...first!.labels], [2, -100, 4, -100, 6, 7, -100, -100, -100, -100]);
  assertEquals([...first!.indexes], [0, 1, 0, 1, 0, 1, 2, 0, 1, 2]);
  assertEquals([...second!.tokens], [8, 9, 10, 11, 12, 13, 14, 0, 0, 0]);
  assertEquals(second!.cuSeqlens, [0, 5, 7, 10]);
  assertEquals([...third!.tokens], [...first!.tokens]);
  assertEquals(rows.place().stream.epoch, 1);
});

Deno.test("createStreamRows() fills: the remainder of a cut document goes on, with its target kept", async () => {
  const rows = rowsOf([...samples, [], [15, -16, 17]], true, 6);
  const read = [await rows.next(), await rows.next(), await rows.next(), await rows.next()];
  assertEquals(read.map(({ tokens }) => [...tokens]), [
    [1, 2, 3, 4, 5, 6],
    [7, 8, 9, 10, 11, 12],
    [13, 14, 15, -16, 17, 1],
    [2, 3, 4, 5, 6, 7],
  ]);
  assertEquals(read.map(({ cuSeqlens }) => cuSeqlens), [[0, 2, 4, 6], [0, 1, 6], [0, 2, 5, 6], [0, 1, 3, 6]]);
  assertEquals(read.map(({ labels }) => [...labels]), [
    [2, -100, 4, -100, 6, 7],
    [-100, 9, 10, 11, 12, -100],
    [14, -100, -16, 17, -100, 2],
    [-100, 4, -100, 6, 7, -100],
  ]);
  assertEquals([...read[1]!.indexes], [0, 0, 1, 2, 3, 4]);
  assertEquals(rows.place(), { stream: { ...rows.place().stream, epoch: 1, index: 3 }, token: 0 });
});

Deno.test("createStreamRows() refuses data without any document, instead of searching without end", async () => {
  await assertRejects(() => rowsOf([[], []], true).next(), RangeError, "no document to train on");
  await assertRejects(() => rowsOf([], false).next(), RangeError, "no document to train on");
});
