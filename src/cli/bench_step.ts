/** `troupe bench step`: how fast a run steps, and where the time goes. */
import { adamw } from "../../kernels/adamw/mod.ts";
import { squaredNorm } from "../../kernels/reduce/mod.ts";
import type { Backend } from "../backend/backend.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { type Batch, createTrainLoader, type TrainLoader } from "../data/mod.ts";
import type { Segment } from "../graph/plan.ts";
import { drive, settle } from "../graph/program.ts";
import { gradientAccumulation } from "../pipeline/schedule.ts";
import { countLabels, feed } from "../train/feed.ts";
import { initializeOptimizer, initializeTrainer } from "../train/initialize.ts";
import { initializeModel } from "../train/model.ts";
import type { Trainer } from "../train/trainer.ts";
import { watchSubmits } from "./bench_dispatch.ts";
import { openBarrier, type Report, round, secondsSince, spread } from "./bench_line.ts";

const undisturbed = "undisturbed steps: work queued as in training, one read-back each";
const split = "split passes: a wait for the device after every part, so that nothing overlaps";

/** Steps before anything is measured: the first ones fill caches. */
const warmUpSteps = 2;

interface Cost {
  readonly flops: number;
  readonly bytes: number;
}
const noCost: Cost = { flops: 0, bytes: 0 };
const plus = (a: Cost, b: Cost): Cost => ({ flops: a.flops + b.flops, bytes: a.bytes + b.bytes });

/** Least work of a segment: what its kernels state, and its copies, each byte read and written once. */
function costOf({ instructions }: Pick<Segment, "instructions">): Cost {
  return instructions.map((instruction) =>
    instruction.kind === "dispatch" ? instruction.kernel.cost : { flops: 0, bytes: 2 * instruction.source.bytes }
  ).reduce(plus, noCost);
}

/** Next batch that is not skipped. */
async function nextBatch(loader: TrainLoader): Promise<Batch> {
  for (;;) {
    const batch = await loader.next();
    if (!batch.skipped) return batch;
  }
}

async function step(trainer: Trainer, batch: Batch): Promise<number> {
  trainer.zeroGrad();
  const { loss } = await trainer.executeSchedule(batch);
  await trainer.step();
  return loss;
}

/** Seconds of each part of one step, the device idle before and after each. */
async function splitStep(trainer: Trainer, loader: TrainLoader, wait: () => Promise<void>) {
  const { model, optimizer: { device } } = trainer, { program } = model;
  const parts = { data: 0, forward: 0, backward: 0, optimizer: 0, read_back: 0 };
  const timed = async (part: keyof typeof parts, work: () => unknown) => {
    const started = performance.now();
    await work();
    parts[part] += secondsSince(started);
  };
  await wait();
  let batch!: Batch;
  await timed("data", async () => batch = await nextBatch(loader));
  const { microBatches } = batch;
  await timed("optimizer", () => (program.zeroGradients(), wait()));
  for (const { segment, microBatch: index, frame } of gradientAccumulation(microBatches.length)) {
    await timed(segment, async () => {
      const microBatch = microBatches[index]!, labels = Math.max(1, countLabels(microBatch.labels));
      const lossWeight = 1 / (labels * microBatches.length);
      feed(model, `${segment} 0`, microBatch, { lossWeight, step: trainer.stepCount, microBatch: index, frame });
      await drive(program.run(`${segment} 0`, frame));
      if (segment === "forward") program.keepOutputs(index, frame);
      return await wait();
    });
  }
  await timed("optimizer", () => (device.norm(), wait()));
  await timed("read_back", () => {
    const ranges = microBatches.flatMap((_, index) =>
      ["loss", "nll", "correct"].map((name) => program.outputRange(name, index))
    );
    return settle(program.backend.read([...ranges, ...device.normRanges]));
  });
  await timed("optimizer", () => {
    // The same work at a rate of zero, since nothing here checks that the gradient is finite.
    const update = { learningRate: 0, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0, gradientScale: 1 };
    device.update({ ...update, updates: trainer.stepCount + 1 });
    return wait();
  });
  return parts;
}

/** Reports tokens a second, memory, and the parts of a step. */
export async function benchStep(
  config: ResolvedConfig,
  { backend, steps, report }: { backend: Backend; steps: number; report: Report },
): Promise<void> {
  using barrier = openBarrier(backend);
  const before = backend.allocatedBytes;
  const loader = createTrainLoader({ ...config.data, use_shm: false }, { dataRank: 0, dataWorldSize: 1 });
  try {
    const { watched, counts, reset } = watchSubmits(backend);
    const model = await initializeModel(config, { backend: watched });
    using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
    const { program: { plan }, memory } = model;
    const line = (figure: string, value: number, unit: string, details: Record<string, unknown> = {}) =>
      report({ bench: "step", figure, value: round(value), unit, run: config.JOB_NAME, ...details });
    line("parameters", model.parameterCount, "", { model_type: config.model_type });

    for (let i = 0; i < warmUpSteps; i++) await step(trainer, await nextBatch(loader));
    await barrier.wait();
    reset();
    const timesBefore = { encode: 0, queue: 0, ...backend.hostTimes };

    const seconds: number[] = [], submit: number[] = [], readBack: number[] = [];
    let tokens = 0, loss = 0;
    const started = performance.now();
    for (let i = 0; i < steps; i++) {
      const stepStarted = performance.now(), batch = await nextBatch(loader);
      loss = await step(trainer, batch);
      seconds.push(secondsSince(stepStarted));
      submit.push(trainer.times.submit);
      readBack.push(trainer.times.readBack);
      tokens += batch.tokens;
    }
    await barrier.wait();
    const total = secondsSince(started), queued = { ...counts };
    const { median, best } = spread(seconds);
    line("tokens_per_second", tokens / total, "tokens/s", { measured: undisturbed, steps, tokens, loss: round(loss) });
    line("step", median, "s", { measured: undisturbed, steps, best });
    line("step_submit", spread(submit).median, "s", { measured: `${undisturbed}; the host queues the work`, steps });
    line("step_wait", spread(readBack).median, "s", {
      measured: `${undisturbed}; the host waits for the device and reads back`,
      steps,
    });

    const ofStep = (count: number) => round(count / steps);
    line("dispatches", queued.dispatches / steps, "a step", {
      measured: undisturbed,
      submits: ofStep(queued.submits),
      read_backs: ofStep(queued.reads),
      uploads: ofStep(queued.uploads),
    });
    const spent = backend.hostTimes, encode = spent && spent.encode - timesBefore.encode;
    const host = encode ?? queued.seconds;
    line("dispatch_host", host / Math.max(1, queued.dispatches), "s", {
      measured: `${undisturbed}; the host records a dispatch, pipelines and bind groups made ahead`,
      step: round(host / steps),
      ...(spent && { queue_step: round((spent.queue - timesBefore.queue) / steps) }),
    });
    if (backend.profile) {
      const batches = [await nextBatch(loader), await nextBatch(loader)];
      const timings = await backend.profile(async () => {
        for (const batch of batches) await step(trainer, batch);
      });
      const busy = timings.reduce((sum, { seconds }) => sum + seconds, 0) / batches.length;
      line("dispatch_device", busy / (queued.dispatches / steps), "s", {
        measured: "timestamps around every kernel of two steps, each in a pass of its own",
        step: round(busy),
        host_of_device: round(host / steps / busy),
      });
    }

    // Nothing is allocated inside a step, so what is held between steps is the most that is ever held.
    line("peak_memory", backend.allocatedBytes - before, "bytes", { estimate: memory.total });

    const idle: number[] = [];
    for (let i = 0; i < 10; i++) {
      const waitStarted = performance.now();
      await barrier.wait();
      idle.push(secondsSince(waitStarted));
    }
    const parts: Awaited<ReturnType<typeof splitStep>>[] = [];
    for (let i = 0; i < steps; i++) parts.push(await splitStep(trainer, loader, barrier.wait));

    const microBatches = config.data.micro_num;
    const times = (cost: Cost, count: number): Cost => ({ flops: cost.flops * count, bytes: cost.bytes * count });
    const arenas = plan.arenas.map((bytes) => bytes / 4);
    const costs = {
      data: noCost,
      forward: times(costOf(plan.segments["forward 0"]), microBatches),
      backward: times(costOf(plan.segments["backward 0"]), microBatches),
      optimizer: arenas.map((length) =>
        plus(plus(squaredNorm({ length }).cost, adamw({ length }).cost), { flops: 0, bytes: 4 * length }) // and cleared
      ).reduce(plus, noCost),
      read_back: noCost,
    };
    const waits = { data: 0, forward: microBatches, backward: microBatches, optimizer: 3, read_back: 0 };
    let sum = 0;
    for (const part of ["data", "forward", "backward", "optimizer", "read_back"] as const) {
      const { median, best } = spread(parts.map((times) => times[part])), { flops, bytes } = costs[part];
      sum += median;
      line(part, median, "s", {
        measured: split,
        steps,
        best,
        waits: waits[part],
        ...(flops > 0 && {
          least_flops: flops,
          least_bytes: bytes,
          gflops: round(flops / best / 1e9),
          gbs: round(bytes / best / 1e9),
        }),
      });
    }
    line("split_step", sum, "s", { measured: "sum of the split parts; compare with step", steps });
    line("wait", spread(idle).median, "s", {
      measured: "one wait on an idle device, contained `waits` times in a part",
    });
  } finally {
    loader.close();
  }
}
