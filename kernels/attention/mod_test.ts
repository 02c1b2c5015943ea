import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import type { DeviceTraits, Kernel } from "../kernel.ts";
import { type Checked, checkGradient, checkKernel, randomNormal, testDevice } from "../testing.ts";
import { forwardPass, keyGradientPass, queryGradientPass, rowDataPass } from "./flash.ts";
import { attentionBackward, attentionForward, type AttentionOptions } from "./mod.ts";
import { workgroupBlocks } from "./workgroup_blocks.ts";

/** Traits that lead to the form for GPUs, whatever the device at hand. */
const gpu: Partial<DeviceTraits> = { software: false };
const forms = [["on this device", undefined], ["as a GPU would", gpu]] as const;

/**
 * The form for GPUs, of a device with the least of workgroup memory, in blocks of half as many rows or a quarter: as it
 * ships, it takes ten seconds to compile in software.
 */
function inSmallBlocks(
  options: AttentionOptions,
  localRows: 1 | 2,
  gradients: readonly ("dK" | "dV")[][] = [["dK", "dV"]],
) {
  const shape = { scale: 1 / Math.sqrt(options.headDim), longest: options.tokens, type: "f32" as const, ...options };
  const made = (kernel: Kernel, passes: (traits: DeviceTraits) => ReturnType<Kernel["passes"]>): Kernel => ({
    ...kernel,
    passes: ({ limits, ...traits }) =>
      passes({ ...traits, ...gpu, limits: { ...limits, maxComputeWorkgroupStorageSize: 16 << 10 } }),
  });
  const form = (traits: DeviceTraits) => workgroupBlocks(options.headDim, traits, localRows);
  const forward = attentionForward(options), backward = attentionBackward(options);
  return {
    forward: made(forward, (traits) => [forwardPass(form(traits), shape, forward.operands, traits)]),
    backward: made(backward, (traits) => [
      rowDataPass(shape, backward.operands, traits),
      queryGradientPass(form(traits), shape, backward.operands, traits),
      ...gradients.map((names) => keyGradientPass(form(traits), shape, backward.operands, traits, names)),
    ]),
  };
}

const inTinyBlocks = (options: AttentionOptions) => inSmallBlocks(options, 1);

/** Segments of the given lengths, told per token. */
function segmentsOf(lengths: readonly number[]) {
  const start: number[] = [], end: number[] = [];
  for (const length of lengths) {
    const first = start.length;
    for (let i = 0; i < length; i++) {
      start.push(first);
      end.push(first + length);
    }
  }
  return { start, end };
}

function inputsOf({ heads, kvHeads, headDim }: AttentionOptions, lengths: readonly number[]) {
  const segments = segmentsOf(lengths), tokens = segments.start.length;
  return {
    q: randomNormal(tokens * heads * headDim, 1),
    k: randomNormal(tokens * kvHeads * headDim, 2),
    v: randomNormal(tokens * kvHeads * headDim, 3),
    ...segments,
  };
}

type Sizes = Omit<AttentionOptions, "tokens">;

/** Where every token is a segment, scores have no gradient: the device leaves rounding errors, the reference 0. */
function checkNearZero({ outputs }: Checked) {
  for (const name of ["dQ", "dK"]) assertEquals(outputs[name].every((value) => Math.abs(value) < 2e-6), true);
}

async function check(
  sizes: Sizes,
  lengths: readonly number[],
  traits?: Partial<DeviceTraits>,
  kernelsOf: (options: AttentionOptions) => { readonly forward: Kernel; readonly backward: Kernel } = (options) => (
    { forward: attentionForward(options), backward: attentionBackward(options) }
  ),
) {
  const options = { ...sizes, tokens: lengths.reduce((a, b) => a + b, 0) };
  const inputs = inputsOf(options, lengths), { forward, backward } = kernelsOf(options);
  const checks = { tolerance: 2e-5, ...(traits && { traits }) };
  const { expected } = await checkKernel(forward, inputs, checks);
  const dO = randomNormal(inputs.q.length, 4);
  const alone = lengths.every((length) => length === 1);
  const checked = await checkKernel(
    backward,
    { ...inputs, o: expected.o, logSumExp: expected.logSumExp, dO },
    alone ? { ...checks, tolerance: { dQ: Infinity, dK: Infinity, dV: 2e-5 } } : checks,
  );
  if (alone) checkNearZero(checked);
}

Deno.test("attention kernels match their references at every kind of head, on this device", async () => {
  // Four elements of a head are a vector.
  for (const headDim of [6, 44, 64]) await check({ heads: 2, kvHeads: 1, headDim }, [5, 1, 34]);
});

Deno.test("attention kernels match their references at long heads, on this device", async () => {
  await check({ heads: 1, kvHeads: 1, headDim: 128 }, [3, 36]);
  // The form for GPUs, as sums of longer heads do not fit the other's registers, with a pass for each of dK and dV; and a
  // GPU's row data, of an odd number of vectors, which its 64 invocations take in halves.
  const sizes = { heads: 1, kvHeads: 1, headDim: 132 };
  assertEquals(attentionBackward({ ...sizes, tokens: 37 }).passes((await testDevice()).traits).length, 4);
  await check(sizes, [37], undefined, (options) => inSmallBlocks(options, 1, [["dK"], ["dV"]]));
});

Deno.test("attention kernels match their references at heads that take several slices, as a GPU would", async () => {
  // Three slices of 16 elements, the last of them not full, and two sums for each invocation.
  await check({ heads: 2, kvHeads: 1, headDim: 36 }, [5, 1, 34], undefined, (options) => inSmallBlocks(options, 2));
});

for (const [form, traits] of forms) {
  Deno.test(`attention kernels match their references for any segments, ${form}`, async () => {
    const sizes = { heads: 6, kvHeads: 2, headDim: 8 };
    // One set of texts serves all streams of one length: three tiles of 64 and a row, and here a row alone.
    const cases = [
      ...(traits ? [] : [[1]]),
      [193],
      [192, 1],
      Array.from({ length: 193 }, () => 1),
      [63, 1, 1, 70, 58],
      [8, 8, 8, 40, 64, 65],
      [150, 1, 1, 41],
    ];
    for (const lengths of cases) await check(sizes, lengths, traits);
  });

  Deno.test(`attentionForward() takes a scale, and scores that overflow an exponential, ${form}`, async () => {
    const options = { tokens: 70, heads: 2, kvHeads: 2, headDim: 6, scale: 30 }; // heads that are no vectors
    const { outputs } = await checkKernel(attentionForward(options), inputsOf(options, [40, 30]), {
      tolerance: 1e-4,
      ...(traits && { traits }),
    });
    assertEquals(outputs.o.every((value) => Number.isFinite(value)), true);
  });
}

// Vectors of one type and words of pairs of the other, as the test of matmul() has both of both: they are loaded alike.
Deno.test("attention kernels of half types match their references, on this device", async () => {
  await check({ heads: 2, kvHeads: 1, headDim: 12, type: "f16" }, [5, 1, 34]);
  await check({ heads: 3, kvHeads: 3, headDim: 6, type: "bf16" }, [65, 8]);
});

Deno.test("attention kernels of half types match their references, as a GPU would", async () => {
  await check({ heads: 2, kvHeads: 1, headDim: 20, type: "f16" }, [5, 1, 34, 65], undefined, inTinyBlocks); // two slices
  await check({ heads: 2, kvHeads: 1, headDim: 6, type: "bf16" }, [5, 1, 34, 65], undefined, inTinyBlocks);
});

Deno.test("attentionBackward() is the gradient of attentionForward(), by finite differences", () => {
  for (const [heads, kvHeads, scale] of [[1, 1, undefined], [4, 2, 0.3]] as const) {
    const options = { tokens: 6, heads, kvHeads, headDim: 2, ...(scale !== undefined && { scale }) };
    checkGradient(attentionForward(options), attentionBackward(options), {
      inputs: inputsOf(options, [4, 2]),
      operands: { dO: "do" },
      gradients: { dQ: "q", dK: "k", dV: "v" },
    });
  }
});

Deno.test("attentionForward() has a reference that is softmax by definition", () => {
  const options = { tokens: 5, heads: 2, kvHeads: 1, headDim: 4 };
  const { q, k, v, start, end } = inputsOf(options, [2, 3]);
  const o = new Float64Array(40), logSumExp = new Float64Array(10);
  attentionForward(options).reference([q, k, v, new Uint32Array(start), new Uint32Array(end), o, logSumExp]);
  for (let t = 0; t < 5; t++) {
    for (let h = 0; h < 2; h++) {
      const seen = [0, 1, 2, 3, 4].filter((j) => j >= (t < 2 ? 0 : 2) && j <= t);
      const weights = seen.map((j) => {
        let score = 0;
        for (let c = 0; c < 4; c++) score += q[(t * 2 + h) * 4 + c] * k[j * 4 + c];
        return Math.exp(score / 2);
      });
      const sum = weights.reduce((a, b) => a + b);
      assertAlmostEquals(logSumExp[t * 2 + h], Math.log(sum), 1e-12);
      for (let c = 0; c < 4; c++) {
        const mean = seen.reduce((total, j, i) => total + weights[i] * v[j * 4 + c], 0) / sum;
        assertAlmostEquals(o[(t * 2 + h) * 4 + c], mean, 1e-12);
      }
    }
  }
});

Deno.test("attention kernels bind at most 8 buffers a pass and 16 KiB of workgroup memory", () => {
  const limits = {} as DeviceTraits["limits"];
  const traits: DeviceTraits = {
    provider: "none",
    description: "portable",
    software: false,
    subgroupSize: 0,
    features: { subgroups: false, shaderF16: false, timestampQuery: false, matrixUnits: false },
    limits,
  };
  for (const headDim of [2, 64, 128, 256]) {
    const options = { tokens: 100, heads: 4, kvHeads: 2, headDim };
    for (const kernel of [attentionForward(options), attentionBackward(options)]) {
      for (const pass of kernel.passes(traits)) {
        assertEquals(pass.operands.length <= 8, true);
        const vectors = [...pass.code.matchAll(/var<workgroup> \w+: array<vec4f, (\d+)>/g)];
        assertEquals(vectors.reduce((bytes, [, count]) => bytes + 16 * Number(count), 0) <= 16_384, true);
      }
    }
  }
});

Deno.test("attentionForward() and attentionBackward() refuse sizes that do not fit", () => {
  const sizes = { tokens: 4, heads: 4, kvHeads: 2, headDim: 8 };
  assertThrows(() => attentionForward({ ...sizes, kvHeads: 3 }), RangeError, "kvHeads must divide heads");
  assertThrows(() => attentionForward({ ...sizes, headDim: 7 }), RangeError, "headDim must be even");
  assertThrows(() => attentionBackward({ ...sizes, headDim: 258 }), RangeError, "at most 256");
  assertThrows(() => attentionBackward({ ...sizes, tokens: 0 }), RangeError, "tokens must be a whole number");
});
