/**
 * The trainer: what one step is. It knows nothing of processes; it runs on one rank's program, with the others of its
 * world, which take the same steps.
 *
 * On one rank a step reads back once: the losses of all micro-batches and the squared norms of the gradients come
 * together, after the last backward pass and before the update. Several ranks sum their gradients before that, and agree
 * on losses and norms after it, in one small exchange: so all of them clip, skip and scale alike. The executor is a
 * generator that yields at every wait, so that a whole world of ranks can run in one thread.
 */
import { decode, isHalf } from "../../kernels/host.ts";
import { elementBytes, type ElementType } from "../../kernels/kernel.ts";
import type { Place } from "../graph/plan.ts";
import { drive, type Wait } from "../graph/program.ts";
import type { Batch, MicroBatch } from "../data/mod.ts";
import type { AdamW } from "../optimizer/adamw.ts";
import { gradientScale } from "../optimizer/clip.ts";
import type { Beta2Scheduler, Beta2State } from "../optimizer/beta2.ts";
import type { DynamicGradScaler, GradScalerState } from "../optimizer/grad_scaler.ts";
import type { FineTuneCosineAnnealingWarmupLR, LearningRateState } from "../optimizer/learning_rate.ts";
import { OverlappedReduction } from "../optimizer/overlap.ts";
import type { SpanSink } from "../observe/trace.ts";
import { mostTravelling, type Synchronizer } from "../optimizer/synchronize.ts";
import { agree } from "./agree.ts";
import { Executor, type StageObserver, type Traffic } from "./execute.ts";
import { meetsInPasses } from "../parallel/world.ts";
import { countLabels, feed, silentMicroBatch } from "./feed.ts";
import type { Model } from "./model.ts";
import { partsOf } from "../graph/large_tables.ts";
import { sumSharedGradients } from "./shared_gradients.ts";
import { Turn, turnsOf } from "./turn.ts";
import { putTogether } from "./whole.ts";

/** What the device says of one micro-batch; arrays of one entry a token. */
export interface MicroBatchResult {
  readonly microBatch: MicroBatch;
  /** Mean loss of the labels that count, label smoothing included; 0 where none counts. */
  readonly loss: number;
  readonly nll: Float32Array;
  readonly correct: Uint32Array;
}

export interface ScheduleResult {
  /** Mean of the micro-batches' losses, those of all data-parallel ranks, `moeLoss` included. */
  readonly loss: number;
  /** Of it, what experts' balance is, times its coefficient; in models with experts. */
  readonly moeLoss?: number;
  /** Those of this rank; in a pipeline, of the last stage. */
  readonly microBatches: readonly MicroBatchResult[];
  /** Length of the whole gradient before clipping, loss scale taken out; absent when only forward. */
  readonly gradNorm?: number;
}

export interface StepResult {
  /** False when the gradient was not finite: nothing was updated. */
  readonly success: boolean;
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly beta2: number;
  /** What this step's gradients were multiplied by; the scaler has the next one. */
  readonly lossScale: number;
}

export interface Optimizer extends Disposable {
  readonly device: AdamW;
  /** One for each group of parameters: they sum gradients over ranks and hand updated parameters round. */
  readonly synchronizers: readonly Synchronizer[];
  readonly learningRate: FineTuneCosineAnnealingWarmupLR;
  readonly beta2: Beta2Scheduler;
  readonly gradScaler: DynamicGradScaler;
}

/** Everything of a trainer that is not a tensor: plain JSON, for checkpoints. */
export interface TrainerState {
  /** Successful updates so far. */
  step_count: number;
  /** Updates that the moments have seen: fewer than `step_count` in a run that began without them. */
  optimizer_steps?: number;
  /** Steps skipped because a gradient was not finite. */
  inf_nan_skip_batches: number;
  lr_scheduler: LearningRateState;
  beta2_scheduler: Beta2State;
  grad_scaler: GradScalerState;
}

/** What one rank brings to a step. */
export type TrainerBatch = Pick<Batch, "microBatches"> & Partial<Pick<Batch, "globalRows">>;

/** Marks of time inside a step, for traces and the benchmark; seconds since the step's schedule began. */
export interface StepTimes {
  submit: number;
  readBack: number;
  update: number;
}

/**
 * Runs schedules and updates on one rank.
 *
 * ```ts ignore
 * trainer.zeroGrad();
 * const { loss } = await trainer.executeSchedule(batch);
 * const { success, gradNorm } = await trainer.step();
 * ```
 */
export class Trainer implements Disposable {
  stepCount = 0;
  /** Updates since the moments were zero, which Adam's bias correction counts. */
  optimizerSteps = 0;
  infNanSkipBatches = 0;
  readonly times: StepTimes = { submit: 0, readBack: 0, update: 0 };
  /** What this rank sent to other stages in the last schedule. */
  sent: Traffic = { messages: 0, bytes: 0 };
  /** Told of every pass and update when it is queued. */
  onInstruction: (text: string) => void = () => {};
  /** Told of every pass of a step and of messages between stages. */
  observer: StageObserver | undefined;
  readonly #executor = new Executor();
  #onSpan: SpanSink | undefined;
  #squaredNorm: number | undefined;

  constructor(readonly model: Model, readonly optimizer: Optimizer) {}

  /** Told of what this thread does in a step, pass by pass and phase by phase, while it is set. */
  set onSpan(sink: SpanSink | undefined) {
    this.#onSpan = sink;
    for (const synchronizer of this.optimizer.synchronizers) synchronizer.onSpan = sink;
  }

  /** Tells of a span that began then and is over. */
  #over(name: string, began: number): void {
    this.#onSpan?.(name, began, performance.now());
  }

  /** Clears the gradients of the step before. */
  zeroGrad(): void {
    this.model.program.zeroGradients();
    this.#squaredNorm = undefined;
  }

  /**
   * Forward, loss and backward over all micro-batches of a batch; gradients add up, over ranks too. Every data-parallel
   * rank brings its own part of the batch; without `globalRows`, as many micro-batches as this one.
   */
  executeSchedule(batch: TrainerBatch): Promise<ScheduleResult> {
    return drive(this.schedule(batch));
  }

  /** `executeSchedule` as a generator that yields at every wait. */
  *schedule({ microBatches, globalRows }: TrainerBatch): Generator<Wait, ScheduleResult> {
    const { program, world, stage } = this.model, pipeline = world.group("pipeline");
    const all = globalRows ?? microBatches.length * world.mesh.size("data");
    if (all === 0) throw new RangeError("Cannot execute a schedule: the batch has no micro-batches");
    const turn = new Turn(turnsOf(this.model));
    const { overlap, gatherOverlap } = this.model,
      { synchronizers } = this.optimizer,
      scale = this.optimizer.gradScaler.scale;
    const started = performance.now();
    // Ranks with other data that gather weights from each other run as many passes, where they have fewer rows.
    const passes = meetsInPasses(world.mesh) ? Math.ceil(all / world.mesh.size("data")) : microBatches.length;
    // Parameters of other ranks come before they are used; only forward passes can be waited for piece by piece.
    if (gatherOverlap && passes > 0) {
      for (const synchronizer of synchronizers) yield* synchronizer.startGathers();
      if (turn.waits) { for (const synchronizer of synchronizers) yield* synchronizer.gather(); }
      else for (const group of gatherOverlap.before) yield* synchronizers[group]!.finishGather();
    } else for (const synchronizer of synchronizers) yield* synchronizer.gather();
    const inThread = program.backend.traits.provider === "none";
    let passBegan = performance.now();
    yield* turn.begin();
    if (turn.waits) this.#over("wait for turn", passBegan);
    /** The device is through with all that was queued: a few bytes come back. */
    const computed = () => program.backend.read(this.optimizer.device.normRanges.slice(0, 1));
    const over = this.#over.bind(this);
    const handOn = function* () {
      if (!turn.awaited) return;
      const began = performance.now();
      yield* turn.handOn(computed);
      over("hand on turn", began);
    };
    const overlapped = overlap && new OverlappedReduction(overlap, synchronizers, inThread);
    this.sent = yield* this.#executor.run(stage.schedule(passes), {
      program,
      pipeline,
      observer: this.observer,
      feed: (name, { microBatch: index, frame }) => {
        const microBatch = microBatches[index] ?? silentMicroBatch(this.model.config.data.packed_length);
        const count = countLabels(microBatch.labels), lossWeight = count === 0 ? 0 : scale / (count * all);
        // Rows are dealt to data-parallel ranks in turn; dropout goes by the place in the whole batch.
        const place = index * world.mesh.size("data") + world.mesh.index("data");
        const weights = { lossWeight, auxiliaryWeight: index < microBatches.length ? scale / all : 0 };
        feed(this.model, name, microBatch, { ...weights, step: this.stepCount, microBatch: place, frame });
      },
      began: (name, { microBatch }) => {
        this.onInstruction(`step ${this.stepCount + 1}: ${name} of micro-batch ${microBatch}`);
        passBegan = performance.now();
      },
      ended: (name, { microBatch }) => this.#over(`${name} of micro-batch ${microBatch}`, passBegan),
      atCuts: (name, { microBatch }) => {
        if (overlapped && name === overlapped.plan.segment && microBatch === passes - 1) {
          return function* (cut) {
            // What is left of this pass, and what comes back of it, goes on beside the next rank's passes.
            yield* handOn();
            yield* overlapped.at(cut);
          };
        }
        const waits = microBatch === 0 ? gatherOverlap?.passes.get(name) : undefined;
        if (waits) return (cut) => synchronizers[waits.groups[cut]!]!.finishGather();
      },
      *done(name, { microBatch, frame, chunk }) {
        if (microBatch >= microBatches.length) return;
        if (program.plan.segments[name].outputs.size > 0) program.keepOutputs(microBatch, frame, chunk);
      },
    });
    yield* handOn();
    if (overlapped) {
      if (passes === 0) { for (const cut of overlapped.plan.cuts.keys()) yield* overlapped.at(cut); }
      yield* overlapped.end();
    }
    yield* sumSharedGradients(stage.shared, { program, pipeline });
    if (overlapped) yield* overlapped.late();
    // A second sum of gradients, over ranks of a tensor group, comes after the first.
    for (const [group, synchronizer] of synchronizers.entries()) {
      yield* overlapped && group < this.model.zero.length
        ? synchronizer.finish()
        // All of it comes back at once where the ranks that it travels to compute later.
        : synchronizer.reduce(turn.group ? Infinity : mostTravelling);
    }
    yield* turn.end();
    this.onInstruction(`step ${this.stepCount + 1}: norm`);
    let began = performance.now();
    this.optimizer.device.norm();
    this.#over("norm", began);
    // Losses are with the last stage.
    const judged = world.mesh.index("pipeline") === world.mesh.size("pipeline") - 1 ? microBatches : [];
    const ranges = judged.flatMap((_, index) => outputNames.map((name) => program.outputRange(name, index)));
    // Losses beside that of the predictions are with the stage of their layer.
    const auxiliary = program.outputNames.filter((name) => name.startsWith(auxiliaryName));
    const auxiliaryRanges = microBatches.flatMap((_, index) =>
      auxiliary.map((name) => program.outputRange(name, index))
    );
    const ticket = program.backend.read([...ranges, ...auxiliaryRanges, ...this.optimizer.device.normRanges]);
    this.times.submit = (performance.now() - started) / 1000;
    began = performance.now();
    yield ticket;
    const read = ticket.take();
    this.#over("read-back", began);
    this.times.readBack = (performance.now() - started) / 1000 - this.times.submit;

    const outputs = read.splice(0, outputNames.length * judged.length);
    const whole = yield* awaited(this.#wholeResults(outputNames, outputs));
    const results = judged.map((microBatch) => toResult(microBatch, whole.splice(0, outputNames.length)));
    const balances = read.splice(0, auxiliaryRanges.length).reduce((sum, bytes) => sum + floats(bytes)[0]!, 0);
    let counted = 0, finite = 0;
    program.plan.state.runs.forEach((run, index) => {
      const squared = floats(read[index]!)[0]!;
      if (run.counted) counted += squared;
      else finite += 0 * squared; // counted by another rank; what is not finite is so for all
    });
    // The ranks of one data-parallel replica have the same losses; its first one tells them.
    const tells = world.mesh.index("tensor") === 0 ? 1 : 0;
    const lossSum = tells * results.reduce((sum, { loss }) => sum + loss, 0);
    began = performance.now();
    const [losses, squaredNorm, balanceSum] = yield* awaited(
      agree(world, [lossSum, counted + finite, tells * balances]),
    );
    this.#over("agree", began);
    this.#squaredNorm = squaredNorm!;
    const moeLoss = this.model.config.loss.moe_loss_coeff * balanceSum! / all;
    return {
      loss: losses! / all + moeLoss,
      ...(this.model.config.model.num_experts > 1 ? { moeLoss } : {}),
      microBatches: results,
      gradNorm: Math.sqrt(squaredNorm!) / scale,
    };
  }

  /** Results of which the ranks of a tensor group have parts, whole on each; `names` repeat for each micro-batch. */
  #wholeResults(names: readonly string[], read: readonly Uint8Array<ArrayBuffer>[]) {
    const { world, results } = this.model;
    return putTogether(world, read.map((bytes, i) => ({ ...results.get(names[i % names.length]!)!, bytes })));
  }

  /**
   * Forward passes only, without dropout; `logits` are read too where asked for. In a pipeline the last stage has the
   * results, and all stages must evaluate together.
   */
  async evaluate(microBatches: readonly MicroBatch[], { logits = false } = {}) {
    const { program, world, stage } = this.model, { segments } = program.plan;
    await this.gather();
    const results: (MicroBatchResult & { logits?: Float32Array })[] = [];
    const names = logits ? [...outputNames, "logits"] : outputNames, wholeResults = this.#wholeResults.bind(this);
    const rows = this.model.results.get("logits")!.shape[0]!;
    await drive(this.#executor.run(stage.schedule(microBatches.length, { forwardOnly: true }), {
      program,
      pipeline: world.group("pipeline"),
      evaluating: true,
      feed: (name, { microBatch }) => feed(this.model, name, microBatches[microBatch]!, { lossWeight: 0, step: 0 }),
      *done(name, { microBatch }) {
        const { outputs } = segments[name];
        if (outputs.size === 0) return;
        // Logits larger than a binding are made in parts of their columns.
        const parts = partsOf(outputs.keys(), "logits"), made = parts.length > 0 ? parts : ["logits"];
        const ranges = [...outputNames, ...(logits ? made : [])].map((output) => program.resultRange(name, output));
        const ticket = program.backend.read(ranges);
        yield ticket;
        const taken = ticket.take();
        if (logits) {
          const bytesOf = ({ type, elements }: Place) => elementBytes[type!] * elements!;
          const exact = taken.splice(outputNames.length)
            .map((bytes, part) => bytes.subarray(0, bytesOf(outputs.get(made[part]!)!)));
          taken.push(joinColumns(exact, rows));
        }
        const read = yield* awaited(wholeResults(names, taken));
        const result = toResult(microBatches[microBatch]!, read), type = outputs.get(made[0]!)?.type;
        results.push({ ...result, ...(logits ? { logits: numbers(read[outputNames.length]!, type) } : {}) });
      },
    }));
    return { loss: results.length > 0 ? mean(results.map(({ loss }) => loss)) : 0, microBatches: results };
  }

  /**
   * Updates the parameters from the gradients of the last `executeSchedule`, or skips where they are not finite. The
   * update is queued on the device, not waited for; what other ranks update is fetched, at once or, with
   * `hybrid_zero_optimizer.overlap_sync_param`, before it is used.
   *
   * @throws {Error} when no schedule ran since the last step
   */
  async step(): Promise<StepResult> {
    if (this.#squaredNorm === undefined) throw new Error("Cannot step: no schedule was executed since the last step");
    const { adam, hybrid_zero_optimizer: { clip_grad_norm, overlap_sync_param } } = this.model.config;
    const { device, synchronizers, learningRate, beta2, gradScaler } = this.optimizer;
    const started = performance.now();
    const lossScale = gradScaler.scale, finite = Number.isFinite(this.#squaredNorm);
    const gradNorm = Math.sqrt(this.#squaredNorm) / lossScale;
    const result = { gradNorm, learningRate: learningRate.learningRate, beta2: beta2.beta2, lossScale };
    this.#squaredNorm = undefined;
    gradScaler.update(!finite);
    if (!finite) {
      this.infNanSkipBatches++;
      return { ...result, success: false };
    }
    this.onInstruction(`step ${this.stepCount + 1}: update`);
    device.update({
      learningRate: result.learningRate,
      beta1: adam.adam_beta1,
      beta2: result.beta2,
      epsilon: adam.adam_eps,
      weightDecay: adam.weight_decay,
      updates: this.optimizerSteps + 1,
      gradientScale: gradientScale(gradNorm, { lossScale, clipGradNorm: clip_grad_norm }),
    });
    this.#over("optimizer", started);
    this.stepCount++;
    this.optimizerSteps++;
    learningRate.step();
    beta2.step();
    for (const synchronizer of synchronizers) synchronizer.updated();
    if (!overlap_sync_param) await this.gather();
    else if (this.model.gatherOverlap) {
      // What the next pass needs at once; more would stand in the way of the small words between two steps.
      for (const group of this.model.gatherOverlap.before) await drive(synchronizers[group]!.startGathers(1));
    }
    this.times.update = (performance.now() - started) / 1000;
    return { ...result, success: true };
  }

  /** Fetches what the passes read of parameters that other ranks have updated, where that is still to be done. All ranks must ask. */
  async gather(): Promise<void> {
    for (const synchronizer of this.optimizer.synchronizers) await drive(synchronizer.gather());
  }

  state(): TrainerState {
    const { learningRate, beta2, gradScaler } = this.optimizer;
    return {
      step_count: this.stepCount,
      optimizer_steps: this.optimizerSteps,
      inf_nan_skip_batches: this.infNanSkipBatches,
      lr_scheduler: learningRate.stateDict(),
      beta2_scheduler: beta2.stateDict(),
      grad_scaler: gradScaler.stateDict(),
    };
  }

  /** @param parts what to take beside the counts. @default both */
  loadState(state: TrainerState, parts: { readonly optimizer?: boolean; readonly scheduler?: boolean } = {}): void {
    const { optimizer = true, scheduler = true } = parts;
    this.stepCount = state.step_count;
    this.infNanSkipBatches = state.inf_nan_skip_batches;
    if (scheduler) {
      this.optimizer.learningRate.loadStateDict(state.lr_scheduler);
      this.optimizer.beta2.loadStateDict(state.beta2_scheduler);
    }
    if (!optimizer) return;
    this.optimizerSteps = state.optimizer_steps ?? state.step_count;
    this.optimizer.gradScaler.loadStateDict(state.grad_scaler);
  }

  [Symbol.dispose](): void {
    this.optimizer[Symbol.dispose]();
    this.model[Symbol.dispose]();
  }
}

/** Outputs that are a loss beside that of the predictions begin so. */
const auxiliaryName = "auxiliary ";
/** What is read back of every micro-batch, in this order. */
const outputNames = ["loss", "nll", "correct"] as const;

const floats = (bytes: Uint8Array<ArrayBuffer>) =>
  new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
/** Rows side by side, from parts of their columns. */
function joinColumns(parts: readonly Uint8Array<ArrayBuffer>[], rows: number): Uint8Array<ArrayBuffer> {
  if (parts.length === 1) return parts[0]!;
  const width = parts.reduce((sum, { length }) => sum + length, 0) / rows, whole = new Uint8Array(width * rows);
  let before = 0;
  for (const part of parts) {
    const own = part.length / rows;
    for (let row = 0; row < rows; row++) whole.set(part.subarray(row * own, (row + 1) * own), row * width + before);
    before += own;
  }
  return whole;
}
/** Floats as they were read, whatever they are stored as. */
const numbers = (bytes: Uint8Array<ArrayBuffer>, type: ElementType = "f32") =>
  isHalf(type) ? decode(type, new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2)) : floats(bytes);
const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;

function toResult(microBatch: MicroBatch, [loss, nll, correct]: readonly Uint8Array<ArrayBuffer>[]): MicroBatchResult {
  const count = countLabels(microBatch.labels);
  let sum = 0;
  for (const value of floats(loss!)) sum += value;
  return {
    microBatch,
    loss: count === 0 ? 0 : sum / count,
    nll: floats(nll!),
    correct: new Uint32Array(correct!.buffer, correct!.byteOffset, correct!.byteLength / 4),
  };
}

function* awaited<T>(promise: Promise<T>): Generator<Wait, T> {
  let value!: T;
  yield { ready: async () => value = await promise };
  return value;
}
