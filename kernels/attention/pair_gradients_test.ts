import { assertEquals } from "@std/assert";
import type { DeviceTraits, Kernel, Operand } from "../kernel.ts";
import { auditing, checkKernel, randomNormal } from "../testing.ts";
import { inputsOf } from "./_testing.ts";
import { keyGradientPass, queryGradientPass, rowDataPass } from "./flash.ts";
import { attentionBackward, attentionForward, type AttentionOptions } from "./mod.ts";
import { pairGradientPasses, type PairGradients } from "./pair_gradients.ts";
import { mostPairs, pairsOperand, type Rounds, roundsOf, scratchOperand } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";
import { subgroupBlocks } from "./subgroup_blocks.ts";
import { workgroupBlocks } from "./workgroup_blocks.ts";

/** Blocks of 8 tokens, whose texts compile soon. */
const block = 8;
const square: PairGradients = {
  scores: { rows: 8, columns: 8, blockRows: 4, blockColumns: 4, depth: 4 },
  products: { columns: 8, blockRows: 4, blockColumns: 4, depth: 4 },
};
const broad: PairGradients = {
  scores: { rows: 8, columns: 4, blockRows: 4, blockColumns: 4, depth: 4 },
  products: { columns: 4, blockRows: 8, blockColumns: 4, depth: 8 },
};

const shapeOf = (options: AttentionOptions): AttentionShape => ({
  scale: 1 / Math.sqrt(options.headDim),
  type: "f32",
  ...options,
});

const roundsOfHeads = ({ tokens, heads, longest = tokens }: AttentionOptions, headsAtOnce: number): Rounds => ({
  block,
  blocks: Math.ceil(tokens / block),
  pairs: mostPairs(tokens, longest, block),
  heads: headsAtOnce,
  count: Math.ceil(heads / headsAtOnce),
});

/** The backward pass by pairs, `headsAtOnce` of them a round. */
function byPairs(options: AttentionOptions, form: PairGradients, headsAtOnce: number, others = false): Kernel {
  const kernel = attentionBackward(options), shape = shapeOf(options), rounds = roundsOfHeads(options, headsAtOnce);
  const scratch = [
    pairsOperand(rounds),
    scratchOperand(rounds, "f32"),
  ];
  const names = scratch.map(({ name }) => name);
  const operands = [...kernel.operands.filter(({ name }) => !names.includes(name)), ...scratch];
  return {
    ...kernel,
    operands,
    passes: (traits) => [
      rowDataPass(shape, operands, traits),
      ...pairGradientPasses(form, rounds, shape, operands, traits),
      ...(others ? inBlocks(shape, operands, traits) : []),
    ],
  };
}

/** What does the work where there are too many pairs. */
function inBlocks(shape: AttentionShape, operands: readonly Operand[], traits: DeviceTraits) {
  const blocks = traits.subgroupSize >= 4 && traits.subgroupSize <= 32
    ? subgroupBlocks(shape.headDim, traits)
    : workgroupBlocks(shape.headDim, traits);
  return [
    queryGradientPass(blocks, shape, operands, traits, true),
    keyGradientPass(blocks, shape, operands, traits, ["dK", "dV"], true),
  ];
}

/** What the forward pass makes of it. */
function outputsOf({ heads, kvHeads, headDim }: Omit<AttentionOptions, "tokens">, inputs: ReturnType<typeof inputsOf>) {
  const tokens = inputs.start.length, forward = attentionForward({ tokens, heads, kvHeads, headDim });
  const o = new Float32Array(tokens * heads * headDim), logSumExp = new Float32Array(tokens * heads);
  forward.reference(
    forward.operands.map(({ name }) =>
      name === "o" ? o : name === "logSumExp" ? logSumExp : Float32Array.from(inputs[name as keyof typeof inputs])
    ),
  );
  return { tokens, o, logSumExp };
}

async function check(
  sizes: Omit<AttentionOptions, "tokens" | "longest">,
  lengths: readonly number[],
  form: PairGradients,
  headsAtOnce: number,
  expected?: number,
) {
  const { type = "f32" } = sizes, inputs = inputsOf(sizes, lengths);
  const { tokens, o, logSumExp } = outputsOf(sizes, inputs);
  const options = { ...sizes, tokens, longest: expected ?? Math.max(...lengths) };
  return await checkKernel(byPairs(options, form, headsAtOnce, expected !== undefined), { ...inputs, o, logSumExp }, {
    tolerance: type === "f32" ? 2e-5 : 2e-2,
  });
}

Deno.test("attention's gradients by pairs of blocks match their reference, whatever the segments", async () => {
  const sizes = { heads: 4, kvHeads: 2, headDim: 12 };
  // Lengths that sum to one number share a text if the longest is the same.
  for (const lengths of [[40, 1, 1, 9, 20], [1, 2, 40, 3, 5, 4, 16]]) await check(sizes, lengths, square, 2);
});

Deno.test("attention's gradients by pairs match where the last round has fewer heads, and repeat bit for bit", async () => {
  const sizes = { heads: 3, kvHeads: 3, headDim: 8 };
  const [first, again] = [await check(sizes, [33, 15], broad, 2), await check(sizes, [33, 15], broad, 2)];
  assertEquals(first.outputs, again.outputs);
});

Deno.test("attention's gradients by pairs are made in blocks where segments are longer than expected", async () => {
  const sizes = { heads: 2, kvHeads: 1, headDim: 8 };
  await check(sizes, [50, 3], square, 2, 16);
});

Deno.test("segments that begin and end anywhere keep attention by pairs in its operands", async () => {
  if (!auditing) return console.log("skipped: its texts compile for long; deno task audit has it");
  const sizes = { heads: 2, kvHeads: 1, headDim: 16 }, tokens = 53, { q, k, v, dO } = inputsOf(sizes, [tokens]);
  const anywhere = [0xffff_ffff, tokens, 0, 0x8000_0000, tokens + 1, 7, 0x7fff_ffff];
  const inputs = { q, k, v, dO, o: q, logSumExp: randomNormal(tokens * 2, 5) };
  for (const longest of [16, tokens]) {
    const kernel = { ...byPairs({ ...sizes, tokens, longest }, broad, 2, true), reference: () => {} };
    for (const turn of [0, 3]) {
      const start = Array.from({ length: tokens }, (_, t) => anywhere[(t + turn) % anywhere.length]!);
      await checkKernel(kernel, { ...inputs, start, end: start.toReversed() }, { tolerance: Infinity });
    }
  }
});

Deno.test("attention's gradients by pairs match their reference as they ship", async () => {
  if (!auditing) return console.log("skipped: its texts compile for long; deno task audit has it");
  const sizes = { heads: 2, kvHeads: 1, headDim: 32 }, inputs = inputsOf(sizes, [301, 1, 520, 202, 77]);
  const { tokens, o, logSumExp } = outputsOf(sizes, inputs),
    kernel = attentionBackward({ ...sizes, tokens, longest: 520 });
  assertEquals(kernel.operands.some(({ name }) => name === "scratch"), true);
  // Indices are those of the tests above; checks of each would compile for many minutes.
  await checkKernel(kernel, { ...inputs, o, logSumExp }, {
    tolerance: 2e-5,
    traits: { software: false },
    audit: false,
  });
});

Deno.test("attention's gradients by pairs of half types match their reference", async () => {
  await check({ heads: 2, kvHeads: 1, headDim: 8, type: "bf16" }, [5, 18], square, 2);
});

Deno.test("mostPairs() is never exceeded, and reached where it is one segment or aligned ones and a token", () => {
  const pairsOf = (lengths: readonly number[], block: number) => {
    const start = lengths.flatMap((length, i) =>
      Array<number>(length).fill(lengths.slice(0, i).reduce((a, b) => a + b, 0))
    );
    let pairs = 0;
    for (let i = 0; i * block < start.length; i++) pairs += i - Math.floor(start[i * block]! / block) + 1;
    return pairs;
  };
  let seed = 1;
  const random = (most: number) => (seed = seed * 48_271 % 2_147_483_647) % most + 1;
  for (let trial = 0; trial < 500; trial++) {
    const block = random(5), longest = random(40), lengths = Array.from({ length: random(12) }, () => random(longest));
    const tokens = lengths.reduce((a, b) => a + b, 0), pairs = pairsOf(lengths, block);
    assertEquals(pairs <= mostPairs(tokens, Math.max(...lengths), block), true, `${lengths} in blocks of ${block}`);
  }
  assertEquals(pairsOf([100], 8), mostPairs(100, 100, 8));
  assertEquals(pairsOf([7, 16, 16, 9], 8) + 2, mostPairs(48, 16, 8));
});

Deno.test("rounds hold whole groups of heads, all of them, and a group that does not fit makes none", () => {
  const shape = { tokens: 8192, heads: 16, kvHeads: 8, headDim: 64, scale: 1, type: "f32" as const };
  const rounds = roundsOf({ ...shape, longest: 2048 }, "f32")!;
  assertEquals(rounds, { block: 128, blocks: 64, pairs: 608, heads: 4, count: 4 });
  assertEquals(scratchOperand(rounds, "f32").length * 4 <= 320 << 20, true);
  assertEquals(roundsOf({ ...shape, kvHeads: 2, longest: 2048 }, "f32"), undefined);
  assertEquals(roundsOf({ ...shape, tokens: 32_768 }, "f32"), undefined);
  assertEquals(roundsOf({ ...shape, heads: 15, kvHeads: 15, longest: 2048 }, "f32"), { ...rounds, heads: 4, count: 4 });
});
