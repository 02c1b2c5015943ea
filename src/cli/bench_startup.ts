/**
 * `troupe bench startup`: from the start of the process to the end of the first step. The program starts itself afresh,
 * and the child tells when it got where.
 */
import { deviceOptions, openBackend } from "../backend/open.ts";
import { createTrainLoader } from "../data/mod.ts";
import { initializeOptimizer, initializeTrainer } from "../train/initialize.ts";
import { initializeModel } from "../train/model.ts";
import { openBarrier, type Report, spread } from "./bench_line.ts";
import type { DefaultArguments } from "./parser.ts";
import { selfCommand } from "./self.ts";
import { recordFromArguments } from "./verb.ts";

/** In order; each is the time at which it was done. */
const stages = ["deno_start", "module_load", "record", "device", "data", "model", "first_step"] as const;
type Stage = typeof stages[number];

const meaning: Readonly<Record<Stage, string>> = {
  deno_start: "from the start of the process to the start of its runtime",
  module_load: "modules read and evaluated, compiled by an earlier start",
  record: "the run record read and checked",
  device: "the device opened",
  data: "the data opened, the first batch read",
  model: "the model traced and planned, kernels compiled, buffers allocated, weights drawn",
  first_step: "the first step, update and wait for the device included",
};

const now = () => performance.timeOrigin + performance.now();

/** In the child: runs one step and prints the times, in milliseconds since 1970. */
export async function startupChild(
  args: Pick<DefaultArguments, "given" | "config" | "set" | "nproc" | "backend" | "seed" | "resume">,
): Promise<void> {
  const times: Partial<Record<Stage, number>> = { deno_start: performance.timeOrigin, module_load: now() };
  const config = await recordFromArguments(args);
  times.record = now();
  using backend = await openBackend(config.runtime.backend, deviceOptions(config.runtime));
  times.device = now();
  const loader = createTrainLoader({ ...config.data, use_shm: false }, { dataRank: 0, dataWorldSize: 1 });
  try {
    let batch = await loader.next();
    while (batch.skipped) batch = await loader.next();
    times.data = now();
    const model = await initializeModel(config, { backend });
    using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
    using barrier = openBarrier(backend);
    times.model = now();
    trainer.zeroGrad();
    await trainer.executeSchedule(batch);
    await trainer.step();
    await barrier.wait();
    times.first_step = now();
  } finally {
    loader.close();
  }
  console.log(JSON.stringify(times));
}

/**
 * Starts the program `repeats` times and reports each stage.
 *
 * @param words the arguments that name the run, passed on to the child
 */
export async function benchStartup(
  words: readonly string[],
  { repeats, report }: { repeats: number; report: Report },
): Promise<void> {
  const samples = new Map<string, number[]>([...stages, "total"].map((stage) => [stage, []]));
  const { command, args, env } = selfCommand(["bench", "startup", "--child", ...words], { read: true, env: true });
  for (let i = 0; i < repeats; i++) {
    const started = now();
    const child = new Deno.Command(command, { args, env, stdin: "null", stdout: "piped", stderr: "piped" });
    const { success, stdout, stderr } = await child.output();
    const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes).trim();
    if (!success) throw new Error(text(stderr).replace(/^troupe bench: /, "") || "the child process failed");
    const times = JSON.parse(text(stdout).split("\n").at(-1)!) as Record<Stage, number>;
    let last = started;
    for (const stage of stages) {
      samples.get(stage)!.push((times[stage] - last) / 1000);
      last = times[stage];
    }
    samples.get("total")!.push((last - started) / 1000);
  }
  for (const [stage, sample] of samples) {
    const { median, best } = spread(sample);
    const measured = meaning[stage as Stage] ?? "from the start of the process to the end of the first step";
    report({ bench: "startup", figure: stage, value: median, unit: "s", best, repeats, measured });
  }
}
