/**
 * `troupe bench kernels`: every kernel of a run at the run's own sizes, and every family at another size. A kernel is
 * checked against its reference first, then timed.
 */
import type { Kernel } from "../../kernels/kernel.ts";
import type { Backend } from "../backend/backend.ts";
import { resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { moduleNames } from "../models/registry.ts";
import { allowedError, kernelKey, kernelsOf, KernelTrial, largestErrorOf } from "../train/kernel_trial.ts";
import { openBarrier, type Report, round, secondsSince } from "./bench_line.ts";

/** A timing repeats a kernel until it lasts this long, so that the wait for the device does not count. */
const shortestTiming = 0.03;
/** Beyond this many operations the reference would take minutes, and the kernel goes unchecked, which its line says. */
const mostCheckedFlops = 5e9;

const ofOneStep = {
  data: { seq_len: 256, micro_bsz: 1, total_steps: 1 },
  adam: { lr: 1e-3 },
  ckpt: { enable_save_ckpt: false },
};
const small = { num_layers: 1, hidden_size: 256, num_attention_heads: 4, vocab_size: 1000 };

/** Another size of most families, and the families that a run may not have: a normalised head, biases, dropout. */
const otherRecords = [
  {
    JOB_NAME: "medium",
    model_type: "INTERNLM2",
    model: { ...small, hidden_size: 512, num_attention_heads: 8, num_kv_attention_heads: 2, vocab_size: 4000 },
    ...ofOneStep,
  },
  { JOB_NAME: "normalised head", model_type: "INTERNLM2", model: { ...small, norm_head: true }, ...ofOneStep },
  {
    JOB_NAME: "biases, layer norm and dropout",
    model_type: "INTERNLM",
    model: { ...small, norm_type: "layernorm", drop_rate: 0.1 },
    ...ofOneStep,
  },
];

export const otherRuns = (): ResolvedConfig[] =>
  otherRecords.map((record) => resolveConfig(record, { modelTypes: moduleNames() }));

interface Measured {
  /** Of one dispatch, the best of `repeats` timings. */
  readonly seconds: number;
  /** Undefined where the reference would take too long. */
  readonly error: number | undefined;
}

/** Runs a kernel against its reference, then alone against the clock. */
export async function measureKernel(kernel: Kernel, backend: Backend, repeats: number): Promise<Measured> {
  using barrier = openBarrier(backend);
  using trial = new KernelTrial(kernel, backend);
  const once = await trial.prepare();
  const made = await trial.result(once);
  const error = kernel.cost.flops <= mostCheckedFlops ? largestErrorOf(made, trial.reference()) : undefined;
  const time = async (list: typeof once, submissions: number) => {
    const started = performance.now();
    for (let i = 0; i < submissions; i++) backend.submit(list);
    await barrier.wait();
    return secondsSince(started);
  };
  const dispatches = Math.min(1000, Math.ceil(shortestTiming / await time(once, 1)));
  // Many dispatches a submission, as in a step; preparing more would take longer than timing them.
  const each = Math.min(32, dispatches), submissions = Math.ceil(dispatches / each);
  const list = await trial.prepare(kernel, each);
  let seconds = Infinity;
  for (let i = 0; i < repeats; i++) seconds = Math.min(seconds, await time(list, submissions) / (each * submissions));
  return { seconds, error };
}

/**
 * Reports every kernel of the runs, each kernel once. Content is random, so attention sees one segment, the most that
 * there is to do.
 *
 * @returns whether every checked kernel agrees with its reference
 */
export async function benchKernels(
  runs: readonly ResolvedConfig[],
  { backend, repeats, report }: { backend: Backend; repeats: number; report: Report },
): Promise<boolean> {
  const seen = new Set<string>();
  let allAgree = true;
  for (const config of runs) {
    let sum = 0;
    for (const { kernel, run, calls } of kernelsOf(config, backend.traits)) {
      if (seen.has(kernelKey(kernel))) continue;
      seen.add(kernelKey(kernel));
      const { seconds, error } = await measureKernel(kernel, backend, repeats);
      const { flops, bytes } = kernel.cost, agrees = error === undefined || error <= allowedError(kernel);
      const gflops = round(flops / seconds / 1e9), gbs = round(bytes / seconds / 1e9);
      sum += seconds * calls;
      allAgree &&= agrees;
      // Above so many operations a byte, arithmetic is what limits.
      const computes = flops / bytes >= 4;
      report({
        bench: "kernels",
        figure: kernel.name,
        value: computes ? gflops : gbs,
        unit: computes ? "GFLOP/s" : "GB/s",
        run,
        operands: kernel.operands.map(({ name, length }) => `${name} ${length}`).join(", "),
        seconds: round(seconds),
        repeats,
        gflops,
        gbs,
        least_flops: flops,
        least_bytes: bytes,
        calls,
        error: error === undefined ? "not checked: its reference would take minutes" : round(error),
        agrees,
      });
    }
    if (config === runs[0]) {
      report({
        bench: "kernels",
        figure: "all calls of a micro-batch and an update",
        value: round(sum),
        unit: "s",
        run: config.JOB_NAME,
        measured: "sum of best times, each times its calls, attention over one segment",
      });
    }
  }
  return allAgree;
}
