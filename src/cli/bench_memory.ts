/** `troupe bench memory`: what a run holds on the device, part by part, beside what its plan says. */
import type { Backend } from "../backend/backend.ts";
import { openNullBackend } from "../backend/null/backend.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { createTrainLoader } from "../data/mod.ts";
import type { MemoryEstimate } from "../graph/plan.ts";
import { Program } from "../graph/program.ts";
import { AdamW } from "../optimizer/adamw.ts";
import { singleRank } from "../parallel/mesh.ts";
import { initializeOptimizer, initializeTrainer } from "../train/initialize.ts";
import { initializeModel, planModel } from "../train/model.ts";
import { openBarrier, type Report } from "./bench_line.ts";

type Part = Exclude<keyof MemoryEstimate, "total">;

/** First words of buffers' labels, by the part of the plan that they are. */
const parts: Readonly<Record<string, Part>> = {
  parameter: "parameters",
  master: "masters",
  gradient: "gradients",
  moment1: "optimizer",
  moment2: "optimizer",
  optimizer: "optimizer",
  squared: "optimizer",
  frame: "frames",
  workspace: "workspace",
  constant: "constants",
  output: "outputs",
};

/** A backend that counts what is allocated through it, by part and at its most. */
function watchMemory(backend: Backend) {
  const held = new Map<string, number>(),
    partOf = ({ label }: { label: string }) => parts[label.split(" ")[0]!] ?? label;
  let now = 0, peak = 0;
  const add = (buffer: ReturnType<Backend["allocate"]>, sign: 1 | -1) => {
    held.set(partOf(buffer), (held.get(partOf(buffer)) ?? 0) + sign * buffer.bytes);
    now += sign * buffer.bytes;
    peak = Math.max(peak, now);
  };
  const watched: Backend = Object.create(backend, {
    allocate: {
      value(bytes: number, label: string) {
        const buffer = backend.allocate(bytes, label);
        add(buffer, 1);
        return buffer;
      },
    },
    release: {
      value(buffer: ReturnType<Backend["allocate"]>) {
        backend.release(buffer);
        add(buffer, -1);
      },
    },
  });
  return { watched, held: held as ReadonlyMap<string, number>, peak: () => peak };
}

/** One line a part that the plan or the device has, and one for the whole. */
function reportParts(
  { run, planned, held, peak, device, ...details }: {
    readonly run: string;
    readonly planned: MemoryEstimate;
    readonly held: ReadonlyMap<string, number>;
    readonly peak: number;
    readonly device: string;
    readonly [detail: string]: unknown;
  },
  report: Report,
): void {
  const { total, ...each } = planned;
  const line = (figure: string, value: number, more: Record<string, unknown>) =>
    report({ bench: "memory", figure, value, unit: "bytes", run, device, ...more });
  for (const part of new Set([...Object.keys(each), ...held.keys()])) {
    const planned = each[part as Part] ?? 0, value = held.get(part) ?? 0;
    if (planned > 0 || value > 0) line(part, value, { planned });
  }
  line("peak", peak, { planned: total, of_planned: peak / total, ...details });
}

/** What the program and the optimizer of a run allocate, on a device that has no memory. */
export async function benchPlannedMemory(config: ResolvedConfig, report: Report): Promise<void> {
  using backend = openNullBackend();
  const { watched, held, peak } = watchMemory(backend);
  const { plan, memory, stage } = planModel(config, backend.traits, singleRank);
  using program = await Program.create(watched, plan, { frames: stage.frames, microBatches: config.data.micro_num });
  using _optimizer = await AdamW.create(program);
  const { JOB_NAME: run, model: { dtype }, data: { micro_bsz, seq_len } } = config;
  const details = { dtype, tokens: micro_bsz * seq_len, measured: "buffers as allocated, on a device without memory" };
  reportParts({ run, planned: memory, held, peak: peak(), device: "none", ...details }, report);
}

/** What a run holds on a device while it trains, and this process beside it. */
export async function benchMemory(
  config: ResolvedConfig,
  { backend, steps, report }: { backend: Backend; steps: number; report: Report },
): Promise<void> {
  const { watched, held, peak } = watchMemory(backend), before = Deno.memoryUsage();
  using barrier = openBarrier(backend);
  const loader = createTrainLoader({ ...config.data, use_shm: false }, { dataRank: 0, dataWorldSize: 1 });
  try {
    const model = await initializeModel(config, { backend: watched });
    using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
    await barrier.wait();
    const ready = Deno.memoryUsage();
    let most = ready.rss;
    for (let done = 0; done < steps;) {
      const batch = await loader.next();
      if (batch.skipped) continue;
      trainer.zeroGrad();
      await trainer.executeSchedule(batch);
      await trainer.step();
      most = Math.max(most, Deno.memoryUsage().rss);
      done++;
    }
    await barrier.wait();
    const { JOB_NAME: run, model: { dtype } } = config, device = backend.traits.description;
    const after = Deno.memoryUsage();
    const measured = `buffers held through ${steps} steps`;
    reportParts({ run, planned: model.memory, held, peak: peak(), device, dtype, measured }, report);
    // Where the device computes in this machine's memory, its buffers are part of the process's.
    const host = { bench: "memory", unit: "bytes", run, device } as const;
    report({
      ...host,
      figure: "host_rss",
      value: most,
      before: before.rss,
      ready: ready.rss,
      grown_in_steps: after.rss - ready.rss,
      steps,
      measured: "resident memory of this process at its most; before the model, ready to train",
    });
    report({ ...host, figure: "host_heap", value: after.heapUsed, measured: "JavaScript's heap, after the steps" });
  } finally {
    loader.close();
  }
}
