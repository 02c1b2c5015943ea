import { assertEquals } from "@std/assert";
import { hostTraits } from "../../src/backend/cpu/backend.ts";
import { nullDawn } from "../../src/backend/webgpu/_testing.ts";
import type { DeviceTraits, Kernel } from "../kernel.ts";
import { emulatedMatrix } from "../matrix_unit.ts";
import { checkKernel, randomNormal, testDevice } from "../testing.ts";
import { rowDataPass } from "./flash.ts";
import { matrixBackwardPasses, matrixForwardPass } from "./matrix_blocks.ts";
import { attentionBackward, attentionForward, type AttentionOptions } from "./mod.ts";

const withTraits = (kernel: Kernel, passes: Kernel["passes"]): Kernel => ({ ...kernel, passes });

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
  { emulate, scale = 1 }: { emulate: boolean; scale?: number },
) {
  const sizes = { ...options, tokens: lengths.reduce((a, b) => a + b, 0), type: "f16" } as const;
  const { tokens, heads, kvHeads, headDim } = sizes;
  const shape = { scale: 1 / Math.sqrt(headDim), ...sizes };
  const forward = attentionForward(sizes), backward = attentionBackward(sizes);
  const queries = tokens * heads * headDim, keys = tokens * kvHeads * headDim;
  const inputs = {
    q: randomNormal(queries, 1).map((v) => v * scale),
    k: randomNormal(keys, 2),
    v: randomNormal(keys, 3),
    ...segments(lengths),
  };
  const forwardKernel = emulate
    ? withTraits(forward, (traits) => [matrixForwardPass(shape, forward.operands, traits, emulatedMatrix)])
    : forward;
  // Weights and what multiplies them are rounded to f16 on the way.
  const { expected } = await checkKernel(forwardKernel, inputs, { tolerance: { o: 3e-3, logSumExp: 2e-3 } });
  const backwardKernel = emulate
    ? withTraits(backward, (traits) => [
      rowDataPass(shape, backward.operands, traits),
      ...matrixBackwardPasses(shape, backward.operands, traits, emulatedMatrix),
    ])
    : backward;
  const given = { ...inputs, o: expected.o, logSumExp: expected.logSumExp, dO: randomNormal(queries, 4) };
  await checkKernel(backwardKernel, given, { tolerance: 1e-2 });
}

Deno.test("attention in blocks for matrix units matches its reference at odd lengths, in segments, with groups", async () => {
  await check({ heads: 2, kvHeads: 1, headDim: 16 }, [5, 70, 1, 24], { emulate: true });
});

Deno.test("attention in blocks for matrix units takes its sums out where scores grow past what weights hold", async () => {
  await check({ heads: 1, kvHeads: 1, headDim: 16 }, [97], { emulate: true, scale: 8 });
});

Deno.test("attention on matrix units matches its reference, where the device has them", async () => {
  const { features, description } = (await testDevice()).traits;
  if (!features.matrixUnits) return console.log(`skipped: ${description} shows no matrix units`);
  for (const headDim of [32, 64, 96, 128]) {
    await check({ heads: 4, kvHeads: 2, headDim }, [37, 200, 1, 130], { emulate: false });
    await check({ heads: 2, kvHeads: 2, headDim }, [256], { emulate: false, scale: 8 });
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
  };
  for (const headDim of [16, 64, 128]) {
    const sizes = { tokens: 100, heads: 4, kvHeads: 2, headDim, type: "f16" } as const;
    for (
      const { code } of [attentionForward(sizes), attentionBackward(sizes)].flatMap((kernel) => kernel.passes(traits))
    ) {
      const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
      assertEquals(messages.map(({ message, lineNum }) => `${lineNum}: ${message}`), []);
    }
  }
  device.destroy();
});
