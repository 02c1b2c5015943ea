import { assertEquals } from "@std/assert";
import type { DeviceTraits, Kernel } from "../kernel.ts";
import { emulatedMatrix } from "../matrix_unit.ts";
import { auditing, checkKernel, randomNormal, testDevice } from "../testing.ts";
import { inputsOf } from "./_testing.ts";
import { rowDataPass } from "./flash.ts";
import { keptForm, matrixKeptPasses, type MatrixTiling, matrixTilings } from "./matrix_blocks.ts";
import { attentionBackward, attentionForward, type AttentionOptions } from "./mod.ts";
import { largestPass } from "./scales.ts";
import { mostPairs, pairsOperand, type Rounds, scratchOperand } from "./rounds.ts";

type Kept = MatrixTiling & Required<Pick<MatrixTiling, "kept">>;

/** Blocks smaller than those that ship, which compile sooner in software. */
const one = { subgroups: 1, rows: 32, columns: 16 };
const little: Kept = {
  forward: one,
  queryGradient: one,
  keyGradient: { ...one, early: true },
  kept: { subgroups: 1, rows: 16, depth: 16 },
};
const shared: Kept = {
  ...little,
  keyGradient: { subgroups: 2, rows: 16, columns: 32 },
  kept: { subgroups: 1, rows: 32, depth: 32 },
};

/** The backward pass with units played by plain WGSL, some heads a round; passes that others leave nothing to do may go. */
function emulated(options: AttentionOptions, form: Kept, headsAtOnce: number, { alone = false } = {}): Kernel {
  const kernel = attentionBackward(options), { tokens, heads, longest = tokens } = options;
  const shape = { scale: 1 / Math.sqrt(options.headDim), type: "f16" as const, ...options };
  const block = form.keyGradient.subgroups * form.keyGradient.rows;
  const rounds: Rounds = {
    block,
    blocks: Math.ceil(tokens / block),
    pairs: mostPairs(tokens, longest, block),
    heads: headsAtOnce,
    count: Math.ceil(heads / headsAtOnce),
  };
  const others = kernel.operands.filter(({ name }) => name !== "pairs" && name !== "scratch");
  const operands = [...others, pairsOperand(rounds), scratchOperand(rounds, "f16", 1)];
  const passes = (traits: DeviceTraits) => [
    ...(shape.type === "bf16" ? [largestPass(operands)] : []),
    rowDataPass(shape, operands, traits),
    ...matrixKeptPasses(rounds, shape, operands, traits, emulatedMatrix, form).slice(0, alone ? -2 : undefined),
  ];
  return { ...kernel, operands, passes };
}

async function check(
  sizes: Omit<AttentionOptions, "tokens">,
  lengths: readonly number[],
  kernelOf: (options: AttentionOptions) => Kernel,
) {
  const inputs = inputsOf(sizes, lengths), tokens = inputs.start.length, { heads, headDim } = sizes;
  const options = { type: "f16" as const, ...sizes, tokens, longest: sizes.longest ?? Math.max(...lengths) };
  const forward = attentionForward({ ...options, type: "f32" });
  const o = new Float32Array(tokens * heads * headDim), logSumExp = new Float32Array(tokens * heads);
  forward.reference(
    forward.operands.map(({ name }) =>
      name === "o" ? o : name === "logSumExp" ? logSumExp : Float32Array.from(inputs[name as keyof typeof inputs])
    ),
  );
  return await checkKernel(kernelOf(options), { ...inputs, o, logSumExp }, { tolerance: 1e-2 });
}

Deno.test("gradients of scores that are kept make dQ at odd lengths, in segments, with groups, in rounds", async () => {
  await check({ heads: 4, kvHeads: 2, headDim: 16 }, [40, 1, 9, 20], (options) => emulated(options, little, 2));
});

Deno.test("gradients of scores that are kept match where the last round has fewer heads, and repeat bit for bit", async () => {
  const run = () =>
    check({ heads: 3, kvHeads: 3, headDim: 16 }, [33, 15], (options) => emulated(options, shared, 2, { alone: true }));
  const [first, again] = [await run(), await run()];
  assertEquals(first.outputs, again.outputs);
});

Deno.test("gradients of scores that are kept make dQ of bf16", async () => {
  const sizes = { heads: 2, kvHeads: 1, headDim: 16, type: "bf16" } as const;
  await check(sizes, [40, 5], (options) => emulated(options, little, 2, { alone: true }));
});

Deno.test("gradients are made without what was kept where segments are longer than expected", async () => {
  // As many tokens and heads as above, so that most are the same texts.
  const sizes = { heads: 4, kvHeads: 2, headDim: 16, longest: 16 };
  await check(sizes, [67, 3], (options) => emulated(options, little, 2));
});

Deno.test("gradients of scores that are kept stay in their arrays whatever segments say, and end", async () => {
  if (!auditing) return console.log("skipped: without deno task audit nothing looks");
  const options = { tokens: 70, heads: 2, kvHeads: 1, headDim: 16, type: "f16", longest: 40 } as const;
  const outside = (values: readonly number[]) => Array.from({ length: 70 }, (_, i) => values[i % values.length]!);
  const kernel = { ...emulated(options, little, 2), reference() {} };
  await checkKernel(kernel, {
    ...inputsOf(options, [70]),
    start: outside([0xffff_ffff, 70, 0, 0x8000_0000, 69]),
    end: outside([0xffff_ffff, 0, 70, 1, 71, 0x7fff_ffff]),
    o: randomNormal(70 * 2 * 16, 5),
    logSumExp: randomNormal(70 * 2, 6),
  }, { tolerance: Infinity });
});

// Few tokens: llvmpipe leaves loops of an invocation after 65,535 turns in all, and units played by loops take many.
for (const headDim of [64, 128]) {
  Deno.test(`gradients of scores that are kept stay in their arrays as they ship, heads of ${headDim}`, async () => {
    if (!auditing) return console.log("skipped: its texts compile for long; deno task audit has it");
    const form = matrixTilings({ headDim } as AttentionOptions & { scale: number; type: "f16" })[keptForm] as Kept;
    await check(
      { heads: 1, kvHeads: 1, headDim },
      [3, 100, 7],
      (options) => emulated(options, form, 1, { alone: true }),
    );
  });
}

Deno.test("the backward pass keeps gradients of scores on matrix units, where the device has them", async () => {
  const { features, description } = (await testDevice()).traits;
  if (!features.matrixUnits) return console.log(`skipped: ${description} shows no matrix units`);
  for (const headDim of [32, 64, 96, 128]) {
    for (const type of ["f16", "bf16"] as const) {
      await check({ heads: 4, kvHeads: 2, headDim, type }, [137, 500, 1, 386], attentionBackward);
    }
  }
  await check({ heads: 2, kvHeads: 2, headDim: 64, longest: 64 }, [1024], attentionBackward);
});
