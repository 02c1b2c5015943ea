/**
 * Device time by timestamp queries: two for each compute pass. A query set holds a bounded number, so sets are added as
 * passes come; each submission resolves what it wrote.
 *
 * Ticks are taken as nanoseconds: what the standard says, and what NVIDIA's and Mesa's software drivers count in. The
 * built-in provider passes on the driver's own ticks, which on other GPUs may be longer (Intel's are 52 to 83 ns).
 */
import type { Kernel } from "../../../kernels/kernel.ts";
import type { KernelTiming } from "../backend.ts";

const passesPerSet = 512;
const bytesPerPass = 16;

interface QuerySet {
  readonly queries: GPUQuerySet;
  readonly resolved: GPUBuffer;
  readonly passes: { readonly kernel: Kernel; readonly first: boolean }[];
  /** Passes resolved so far. */
  done: number;
}

export interface Timer extends Disposable {
  /** What to begin a compute pass with, `first` of a dispatch of this kernel or one more pass of it. */
  next(kernel: Kernel, first: boolean): GPUComputePassDescriptor;
  /** Has the passes begun so far resolved at the encoder's end. */
  resolve(encoder: GPUCommandEncoder): void;
  /** Times of all dispatches. */
  read(): Promise<KernelTiming[]>;
}

export function createTimer(device: GPUDevice): Timer {
  const sets: QuerySet[] = [];
  return {
    next(kernel, first) {
      let set = sets.at(-1);
      if (set === undefined || set.passes.length === passesPerSet) {
        const resolved = device.createBuffer({
          label: "timestamps",
          size: passesPerSet * bytesPerPass,
          usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC,
        });
        const queries = device.createQuerySet({ label: "timestamps", type: "timestamp", count: 2 * passesPerSet });
        sets.push(set = { queries, resolved, passes: [], done: 0 });
      }
      const pass = set.passes.push({ kernel, first }) - 1;
      return {
        timestampWrites: {
          querySet: set.queries,
          beginningOfPassWriteIndex: 2 * pass,
          endOfPassWriteIndex: 2 * pass + 1,
        },
      };
    },
    resolve(encoder) {
      for (const set of sets) {
        if (set.done === set.passes.length) continue;
        // Offsets must be multiples of 256 bytes, so what was resolved before is resolved again.
        encoder.resolveQuerySet(set.queries, 0, 2 * set.passes.length, set.resolved, 0);
        set.done = set.passes.length;
      }
    },
    async read() {
      const timings: { kernel: Kernel; seconds: number }[] = [];
      for (const { resolved, passes } of sets) {
        const bytes = passes.length * bytesPerPass;
        const staging = device.createBuffer({ size: bytes, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
        const encoder = device.createCommandEncoder();
        encoder.copyBufferToBuffer(resolved, 0, staging, 0, bytes);
        device.queue.submit([encoder.finish()]);
        await staging.mapAsync(GPUMapMode.READ);
        const ticks = new BigUint64Array(staging.getMappedRange());
        passes.forEach(({ kernel, first }, pass) => {
          const seconds = Math.max(0, Number(ticks[2 * pass + 1]! - ticks[2 * pass]!)) / 1e9;
          if (first) timings.push({ kernel, seconds });
          else timings.at(-1)!.seconds += seconds;
        });
        staging.destroy();
      }
      return timings;
    },
    [Symbol.dispose]() {
      for (const { queries, resolved } of sets) {
        queries.destroy();
        resolved.destroy();
      }
    },
  };
}
