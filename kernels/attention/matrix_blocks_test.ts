import { assertEquals, assertThrows } from "@std/assert";
import { hostTraits } from "../../src/backend/cpu/backend.ts";
import { nullDawn } from "../../src/backend/webgpu/_testing.ts";
import { audited } from "../audit.ts";
import type { DeviceTraits, Kernel, Pass } from "../kernel.ts";
import { emulatedMatrix } from "../matrix_unit.ts";
import { auditing, checkKernel, randomNormal, testDevice } from "../testing.ts";
import { rowDataPass } from "./flash.ts";
import { largestPass } from "./scales.ts";
import { matrixBackwardPasses, matrixForwardPass, type MatrixTiling, matrixTilings } from "./matrix_blocks.ts";
import { attentionBackward, attentionForward, type AttentionOptions } from "./mod.ts";

const withTraits = (kernel: Kernel, passes: Kernel["passes"]): Kernel => ({ ...kernel, passes });

/** Blocks of sizes that ship, of fewer subgroups, and smaller ones, which compile sooner in software. */
const pair = { subgroups: 2, rows: 32, columns: 32 };
const large = {
  forward: { ...pair, columns: 16, crosswise: true },
  queryGradient: { ...pair, rows: 16 },
  keyGradient: { ...pair, columns: 16, crosswise: true },
};
const one = { subgroups: 1, rows: 32, columns: 16 };
const little = {
  forward: { ...one, rows: 16, early: true },
  queryGradient: { ...one, crosswise: true },
  keyGradient: { ...one, rows: 16, columns: 32 },
};

/** Segments of these lengths, as `start` and `end`. */
function segments(lengths: readonly number[]) {
  const start: number[] = [], end: number[] = [];
  for (const length of lengths) {
    const first = start.length;
    for (let i = 0; i < length; i++) start.push(first), end.push(first + length);
  }
  return { start, end };
}

async function check(
  options: Omit<AttentionOptions, "tokens">,
  lengths: readonly number[],
  { emulate, scale = 1, amplitude = 1, segments: hostile }: {
    emulate?: MatrixTiling;
    scale?: number;
    amplitude?: number;
    /** In place of those of the lengths, of which the reference makes nothing. */
    segments?: ReturnType<typeof segments>;
  } = {},
) {
  const sizes = { type: "f16" as const, ...options, tokens: lengths.reduce((a, b) => a + b, 0) };
  const { tokens, heads, kvHeads, headDim } = sizes;
  const shape = { scale: 1 / Math.sqrt(headDim), ...sizes };
  const forward = attentionForward(sizes), backward = attentionBackward(sizes);
  const scales = ({ operands }: Kernel) => sizes.type === "bf16" ? [largestPass(operands)] : [];
  const queries = tokens * heads * headDim, keys = tokens * kvHeads * headDim;
  const inputs = {
    q: randomNormal(queries, 1).map((v) => v * scale * amplitude),
    k: randomNormal(keys, 2).map((v) => v / amplitude),
    v: randomNormal(keys, 3).map((v) => v * amplitude),
    ...(hostile ?? segments(lengths)),
  };
  const forwardKernel = emulate
    ? withTraits(forward, (traits) => [
      ...scales(forward),
      matrixForwardPass(shape, forward.operands, traits, emulatedMatrix, emulate.forward),
    ])
    : forward;
  // Weights and what multiplies them are rounded to f16 on the way.
  const { expected } = await checkKernel(forwardKernel, inputs, {
    tolerance: hostile ? Infinity : { o: 3e-3, logSumExp: 2e-3 },
  });
  const backwardKernel = emulate
    ? withTraits(backward, (traits) => [
      ...scales(backward),
      rowDataPass(shape, backward.operands, traits),
      ...matrixBackwardPasses(shape, backward.operands, traits, emulatedMatrix, emulate),
    ])
    : backward;
  const given = {
    ...inputs,
    o: expected.o,
    logSumExp: expected.logSumExp,
    dO: randomNormal(queries, 4).map((v) => v / amplitude),
  };
  await checkKernel(backwardKernel, given, { tolerance: hostile ? Infinity : 1e-2 });
}

Deno.test("attention in blocks for matrix units matches its reference at odd lengths, in segments, with groups", async () => {
  await check({ heads: 2, kvHeads: 1, headDim: 16 }, [5, 70, 1, 24], { emulate: large });
});

Deno.test("attention in blocks for matrix units scales operands of bf16 that no f16 holds", async () => {
  await check({ heads: 2, kvHeads: 1, headDim: 16, type: "bf16" }, [5, 60], { emulate: little, amplitude: 2 ** 20 });
});

Deno.test("attention in blocks for matrix units takes its sums out where scores grow past what weights hold", async () => {
  // As many tokens and heads as above, so that these are the same texts.
  await check({ heads: 2, kvHeads: 1, headDim: 16 }, [100], { emulate: large, scale: 8 });
});

Deno.test("attention in blocks for matrix units stays in its operands whatever segments say, and ends", async () => {
  if (!auditing) return console.log("skipped: without deno task audit nothing looks");
  const tokens = 100,
    segments = {
      start: Array.from({ length: tokens }, (_, i) => [0xffff_ffff, tokens, 0, 0x8000_0000, 99][i % 5]!),
      end: Array.from({ length: tokens }, (_, i) => [0xffff_ffff, 0, tokens, 1, tokens + 1, 0x7fff_ffff][i % 6]!),
    };
  await check({ heads: 2, kvHeads: 1, headDim: 16 }, [tokens], { emulate: large, segments });
});

// Few tokens: llvmpipe leaves loops of an invocation after 65,535 turns in all, and units played by loops take many.
for (const [headDim, type, long] of [[64, "f16", 60], [128, "f16", 30], [32, "bf16", 60]] as const) {
  Deno.test(`attention in blocks for matrix units stays in its arrays as it ships, heads of ${headDim} in ${type}`, async () => {
    if (!auditing) return console.log("skipped: its texts compile for long; deno task audit has it");
    const shape = { tokens: long + 10, heads: 2, kvHeads: 1, headDim, type, scale: 1 / Math.sqrt(headDim) };
    await check({ heads: 2, kvHeads: 1, headDim, type }, [3, long, 7], { emulate: matrixTilings(shape).units });
  });
}

Deno.test("attention refuses blocks for matrix units that would make wrong sums", () => {
  const sizes = { tokens: 60, heads: 2, kvHeads: 1, headDim: 16, type: "f16", scale: 0.25 } as const;
  const { operands } = attentionForward(sizes), { operands: back } = attentionBackward(sizes);
  const traits: DeviceTraits = { ...hostTraits, features: { ...hostTraits.features, shaderF16: true } };
  const forward = (blocks: Partial<typeof one>) =>
    matrixForwardPass(sizes, operands, traits, emulatedMatrix, { ...one, ...blocks });
  const backward = (query: Partial<typeof one>, key: Partial<typeof one> = {}) =>
    matrixBackwardPasses(sizes, back, traits, emulatedMatrix, {
      queryGradient: { ...one, ...query },
      keyGradient: { ...one, ...key },
    });
  forward({}), forward({ rows: 16 }), backward({ rows: 16, columns: 32 }, { rows: 16, columns: 32 });
  assertThrows(() => forward({ columns: 24 }), RangeError, "must be 16 or 32");
  assertThrows(() => backward({ rows: 16 }), RangeError, "16 rows need 32 columns");
  assertThrows(() => backward({}, { rows: 16 }), RangeError, "16 rows need 32 columns");
});

Deno.test("attention on matrix units matches its reference, where the device has them", async () => {
  const { features, description } = (await testDevice()).traits;
  if (!features.matrixUnits) return console.log(`skipped: ${description} shows no matrix units`);
  for (const headDim of [32, 64, 96, 128]) {
    for (const type of ["f16", "bf16"] as const) {
      await check({ heads: 4, kvHeads: 2, headDim, type }, [37, 200, 1, 130]);
    }
    await check({ heads: 2, kvHeads: 2, headDim }, [256], { scale: 8 });
  }
});

Deno.test("attention for Dawn's matrix units is a text that Dawn compiles", async () => {
  const device = await nullDawn();
  if (typeof device === "string") return console.log(`skipped: ${device}`);
  const traits: DeviceTraits = {
    ...hostTraits,
    provider: "dawn",
    subgroupSize: 32,
    features: { subgroups: true, shaderF16: true, timestampQuery: true, matrixUnits: true },
    limits: { ...hostTraits.limits, maxComputeWorkgroupStorageSize: 48 << 10, maxStorageBuffersPerShaderStage: 16 },
  };
  const compiled = async (passes: readonly Pass[]) => {
    for (const { code } of passes) {
      const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
      assertEquals(messages.map(({ message, lineNum }) => `${lineNum}: ${message}`), []);
    }
    return passes.map(({ code }) => code.includes("subgroupMatrixLoad"));
  };
  for (const headDim of [16, 64, 80, 128]) {
    const sizes = { tokens: 100, heads: 4, kvHeads: 2, headDim, type: "f16" } as const;
    const forward = attentionForward(sizes), backward = attentionBackward(sizes);
    assertEquals(await compiled(forward.passes(traits)), [true]);
    assertEquals(await compiled(backward.passes(traits)), [false, true, true]);
    for (const kernel of [forward, backward]) await compiled(audited(kernel).passes(traits));
    // Enough tokens for what is kept: row data, pairs, both kinds of passes.
    const long = attentionBackward({ ...sizes, tokens: 1100, longest: 300 });
    assertEquals(await compiled(long.passes(traits)), [false, false, true, true, true, true]);
    await compiled(audited(long).passes(traits));
    const scaled = attentionBackward({ ...sizes, type: "bf16", tokens: 1100, longest: 300 });
    assertEquals(await compiled(scaled.passes(traits)), [false, false, false, true, true, true, true]);
  }
  device.destroy();
});
