/** The profile of one step: device time by kernel beside what the device reaches at best. */
import { scale } from "../../kernels/elementwise/mod.ts";
import { elementBytes, type Kernel } from "../../kernels/kernel.ts";
import { matmul } from "../../kernels/matmul/mod.ts";
import type { Backend, KernelTiming, Range } from "../backend/backend.ts";
import type { FloatType } from "../../kernels/host.ts";
import { formatKernelProfile, kernelProfile, kernelTrace, type Peaks } from "../observe/kernel_profile.ts";

export interface StepProfile {
  readonly table: string;
  /** In Chrome's format. */
  readonly trace: string;
}

/**
 * Runs a step and resolves to what it returns and its profile; the profile is absent where the device has no timestamps.
 *
 * @param type of the model's products, for the peak that they are compared with
 */
export async function profileStep<T>(
  backend: Backend,
  step: () => Promise<T>,
  { rank, type, split }: { readonly rank: number; readonly type: FloatType; readonly split: boolean },
): Promise<{ readonly result: T; readonly profile?: StepProfile }> {
  if (backend.profile === undefined) return { result: await step() };
  let done: { readonly result: T } | undefined;
  const timings = await backend.profile(async () => {
    done = { result: await step() };
  });
  const peaks = await measurePeaks(backend, type, split), { description, provider } = backend.traits;
  const seconds = timings.reduce((sum, timing) => sum + timing.seconds, 0);
  const table = `One step of rank ${rank} on ${description} (${provider}), each dispatch timed alone: ` +
    `${(seconds * 1000).toFixed(2)} ms.\n` +
    `Peaks measured here: ${peaks.teraflopsPerSecond.toPrecision(3)} TFLOP/s (a product in ${type}${
      split ? " split in two" : ""
    }), ${peaks.gigabytesPerSecond.toPrecision(3)} GB/s (a copy).\n` +
    `Bytes are the least that a kernel must move; "% of peak" is of the nearer of the two limits.\n\n` +
    `${formatKernelProfile(kernelProfile(timings), { peaks, most: 100 })}\n`;
  return { ...done!, profile: { table, trace: kernelTrace(timings, { rank, peaks }) } };
}

/** What a copy and a product reach, at sizes that fill the device without keeping a rasteriser in software for long. */
async function measurePeaks(backend: Backend, type: FloatType, split: boolean): Promise<Peaks> {
  const { software, limits } = backend.traits;
  const length = software ? 1 << 22 : Math.min(1 << 26, limits.maxStorageBufferBindingSize / 4);
  const size = software ? 512 : 4096;
  const copy = scale({ length, factor: 1 });
  const product = matmul({ m: size, n: size, k: size, types: { a: type, b: type, c: type }, split });
  const rate = async (kernel: Kernel, work: number) => work / await bestOf(backend, kernel);
  return {
    teraflopsPerSecond: await rate(product, product.cost.flops) / 1e12,
    gigabytesPerSecond: await rate(copy, copy.cost.bytes) / 1e9,
  };
}

async function bestOf(backend: Backend, kernel: Kernel): Promise<number> {
  const ranges = kernel.operands.map(({ name, type, length }): Range => {
    const bytes = Math.ceil(elementBytes[type] * length / 4) * 4;
    return { buffer: backend.allocate(bytes, `${kernel.name} ${name}`), offset: 0, bytes };
  });
  try {
    const list = await backend.prepare(
      Array.from({ length: 5 }, () => ({ kind: "dispatch" as const, kernel, ranges })),
    );
    backend.submit(list);
    const timings: readonly KernelTiming[] = await backend.profile!(() => backend.submit(list));
    return Math.min(...timings.map(({ seconds }) => seconds));
  } finally {
    ranges.forEach(({ buffer }) => backend.release(buffer));
  }
}
