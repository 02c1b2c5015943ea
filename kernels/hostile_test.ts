/**
 * Kernels whose indices are data, on data that nobody should send: each holds its indices itself, since a device may not
 * (`audit.ts`). Where a reference says what such data means, the kernel does that.
 */
import { attentionBackward, attentionForward } from "./attention/mod.ts";
import {
  crossEntropyBackward,
  crossEntropyForward,
  crossEntropyMerge,
  crossEntropyStatistics,
} from "./cross_entropy/mod.ts";
import { embeddingForward, embeddingGradient, groupsLength } from "./embedding/mod.ts";
import { groupedMatmul, groupedOuter } from "./grouped_matmul/mod.ts";
import type { Kernel } from "./kernel.ts";
import { dispatch, tableOffsets } from "./moe_dispatch/mod.ts";
import { fromRows, rowWeightGradient, toRows } from "./moe_permute/mod.ts";
import { balanceForward, choose, weighBackward, weighForward } from "./moe_router/mod.ts";
import { joinHeads, splitHeads } from "./rope/heads.ts";
import { rotaryTables, rotate } from "./rope/mod.ts";
import { auditing, checkKernel, type CheckOptions, randomNormal } from "./testing.ts";

/** Numbers from far outside, just outside and inside of `[0, bound)`. */
const outside = (length: number, bound: number) => {
  const all = [0xffff_ffff, bound, bound - 1, 0x8000_0000, 0, bound + 1, 0x7fff_ffff, 0xffff_fffe];
  return Array.from({ length }, (_, i) => all[i % all.length]!);
};
const signed = (length: number, bound: number) => outside(length, bound).map((value) => value | 0);

/** As on a GPU, since no other device is without checks; `deno task audit` has the forms for this one too. */
async function check(
  kernel: Kernel,
  inputs: Readonly<Record<string, ArrayLike<number>>>,
  options: Omit<CheckOptions, "audit" | "traits"> = {},
) {
  for (const traits of [{ software: false, subgroupSize: 0 }, ...(auditing ? [{}] : [])]) {
    await checkKernel(kernel, inputs, { ...options, traits, audit: true });
  }
}
/** Of results that mean nothing: only that indices hold. */
const whatever = { tolerance: Infinity };

Deno.test("ids outside of the table are found by no embedding kernel", async () => {
  for (const [tokens, columns, firstRow] of [[11, 4, 0], [9, 3, 5]]) {
    const sizes = { tokens, vocabulary: 7, columns, firstRow }, ids = outside(tokens, 7 + firstRow);
    const table = randomNormal(7 * columns, 1);
    await check(embeddingForward(sizes), { ids, table });
    const groups = outside(groupsLength(tokens), tokens), dY = randomNormal(tokens * columns, 2);
    await check(embeddingGradient(sizes), { groups, dY, dTable: table }, whatever);
  }
});

Deno.test("labels outside of the vocabulary, and logits that are no numbers, leave cross entropy in its rows", async () => {
  for (const columns of [12, 5]) {
    const rows = 9, sizes = { rows, columns, labelSmoothing: 0.1 }, labels = signed(rows, columns);
    const logits = randomNormal(rows * columns, 3), logSumExp = randomNormal(rows, 4);
    await check(crossEntropyForward(sizes), { logits, labels });
    await check(crossEntropyBackward(sizes), { logits, labels, logSumExp, weight: [0.5] });
    await check(crossEntropyStatistics({ rows, columns, firstColumn: 3 }), { logits, labels });
    const statistics = randomNormal(2 * rows * 5, 5);
    await check(crossEntropyMerge({ ...sizes, parts: 2, vocabulary: 2 * columns }), { statistics, labels }, whatever);
    const none = logits.map((value, i) => i % columns < 2 * Math.floor(i / columns) ? NaN : value * Infinity);
    for (const kernel of [crossEntropyForward(sizes), crossEntropyStatistics({ rows, columns, firstColumn: 0 })]) {
      const integers = kernel.operands.filter(({ access, type }) => access === "write" && type === "u32");
      // Which of several that are no numbers is the largest is not said, so what is written of it is not compared.
      const floats = { ...kernel, reference: () => {} };
      if (integers.length === 0) await check(floats, { logits: none, labels }, whatever);
      else await check(kernel, { logits: none, labels: labels.fill(-1) }, whatever);
    }
  }
});

Deno.test("positions past the rotary tables turn by the last entry", async () => {
  const tokens = 9, heads = 2, kvHeads = 1, headDim = 8, positionsLength = 5;
  const sizes = { tokens, heads, headDim, positionsLength, interleaved: false };
  const tables = {
    positions: outside(tokens, positionsLength),
    ...rotaryTables({ headDim, base: 100, length: positionsLength }),
  };
  const part = (count: number) => randomNormal(tokens * count * headDim, count);
  await check(rotate(sizes), { x: part(heads), ...tables });
  await check(splitHeads({ ...sizes, kvHeads }), { qkv: part(heads + 2 * kvHeads), ...tables });
  await check(joinHeads({ ...sizes, kvHeads }), {
    query: part(heads),
    key: part(kvHeads),
    value: part(kvHeads),
    ...tables,
  });
});

Deno.test("choices that are no expert's number are none to the router and to places", async () => {
  const tokens = 9, experts = 5, choices = 3, sizes = { tokens, experts, choices }, entries = tokens * choices;
  const probability = randomNormal(tokens * experts, 1).map((value) => value ** 2);
  const slot = outside(entries, entries), dWeight = randomNormal(entries, 2);
  // The last two of a token are experts, and differ.
  const choice = outside(entries, experts).map((e, i) => i % 3 === 0 ? e : (Math.floor(i / 3) + i % 3) % experts);
  for (const normalize of ["none", "all", "kept"] as const) {
    await check(weighForward({ ...sizes, normalize }), { probability, choice, slot });
    // An expert that a token chooses twice has no one gradient.
    const once = choice.map((e, i) => i % 3 === 0 && e < experts ? experts : e);
    await check(weighBackward({ ...sizes, normalize }), { probability, choice: once, slot, dWeight });
  }
  await check(balanceForward({ ...sizes, counted: 2 }), { probability, choice });
  await check(dispatch({ ...sizes, order: "token" }), { choice });
  await check(dispatch({ ...sizes, order: "choice", capacity: 2 }), { choice });
  const byPriority = dispatch({ ...sizes, order: "choice", capacity: 2, byPriority: true });
  await check(byPriority, { choice, priority: probability });
  await check(tableOffsets({ sources: 2, experts }), { table: outside(2 * experts, 9) });
  // Every comparison with what is no number fails: the first that is left is taken.
  const logits = new Float32Array(tokens * experts).fill(NaN);
  await check({ ...choose(sizes), reference: ([, chosen]) => chosen.forEach((_, i) => chosen[i] = i % choices) }, {
    logits,
  });
});

Deno.test("rows and slots past the last one are empty to permutations", async () => {
  for (const columns of [4, 3]) {
    const tokens = 5, choices = 2, rows = 9, sizes = { tokens, choices, rows, columns }, entries = tokens * choices;
    const x = randomNormal(tokens * columns, 1), y = randomNormal(rows * columns, 2), weight = randomNormal(entries, 3);
    const row = outside(rows, entries), slot = outside(entries, rows);
    await check(toRows({ ...sizes, weighted: true }), { x, row, weight });
    await check(fromRows({ ...sizes, weighted: true }), { x: y, slot, weight });
    await check(rowWeightGradient(sizes), { x: y, slot, dY: x });
  }
});

Deno.test("offsets that fall or pass the last row keep products by group in their operands", async () => {
  for (const [n, k] of [[8, 12], [5, 3]]) {
    for (const offset of [[0xffff_ffff, 0, 0x8000_0000, 3], [9, 4, 0xffff_ffff, 0], [0, 0, 0, 10]]) {
      const rows = 10, groups = offset.length - 1, sizes = { rows, groups, n, k };
      const a = randomNormal(rows * k, 1), b = randomNormal(groups * n * k, 2), dY = randomNormal(rows * n, 3);
      // B lies one way where its lines are vectors, the other way where they are not.
      await check(groupedMatmul({ ...sizes, transposeB: n === 8 }), { a, b, offset }, whatever);
      await check(groupedOuter(sizes), { a: dY, b: a, offset }, whatever);
    }
  }
});

Deno.test("segments that begin and end anywhere keep attention in its operands, and end", async () => {
  if (!auditing) return console.log("skipped: its texts compile for long; deno task audit has it");
  const tokens = 21, heads = 2, kvHeads = 1, headDim = 8, sizes = { tokens, heads, kvHeads, headDim };
  const part = (count: number, seed: number) => randomNormal(tokens * count * headDim, seed);
  const given = { q: part(heads, 1), k: part(kvHeads, 2), v: part(kvHeads, 3) };
  const segments = { start: outside(tokens, tokens), end: outside(tokens, tokens).reverse() };
  await check(withoutReference(attentionForward(sizes)), { ...given, ...segments }, whatever);
  const gradients = { o: part(heads, 4), dO: part(heads, 5), logSumExp: randomNormal(tokens * heads, 6) };
  await check(withoutReference(attentionBackward(sizes)), { ...given, ...gradients, ...segments }, whatever);
});

const withoutReference = (kernel: Kernel): Kernel => ({ ...kernel, reference: () => {} });
