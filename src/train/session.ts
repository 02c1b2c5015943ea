/**
 * One rank's training, step by step: a trainer with its metrics and its state for checkpoints. It is handed batches and
 * says what happened; who brings batches, writes records and decides to save is told elsewhere.
 */
import type { Backend } from "../backend/backend.ts";
import { type Checkpoint, entryKinds, type Json, type LoadContent, loadContents } from "../checkpoint/mod.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { type Batch, createValidationLoaders, type DataPosition, type ValidationLoader } from "../data/mod.ts";
import { AccPerplex } from "../observe/metrics.ts";
import { type StepRecord, stepRecord, validationRecord } from "../observe/step_record.ts";
import { TgsStatistic } from "../observe/tgs_statistic.ts";
import { solo, type World } from "../parallel/world.ts";
import { agree } from "./agree.ts";
import { loadTensors } from "./checkpoint.ts";
import { evaluateSets } from "./evaluate.ts";
import { checkTokens } from "./feed.ts";
import { initializeOptimizer, initializeTrainer } from "./initialize.ts";
import { initializeModel } from "./model.ts";
import type { Trainer, TrainerState } from "./trainer.ts";

/** What one step was, for records and for people. */
export interface StepReport {
  /** InternEvo's record; absent where the update was skipped. */
  readonly record?: StepRecord;
  readonly loss: number;
  readonly gradNorm: number;
  readonly learningRate: number;
  readonly tokensPerSecond: number;
  readonly seconds: number;
  readonly success: boolean;
}

/** Everything of a run that is not a tensor. Plain JSON. */
export interface SessionState {
  readonly trainer: TrainerState;
  readonly data: DataPosition;
}

export interface SessionOptions {
  readonly backend: Backend;
  /** The ranks that train together. @default this one alone */
  readonly world?: World;
  /** Most micro-batches of this rank in a step. @default {config.data.micro_num} */
  readonly microBatches?: number;
  /** Whether parameters get their initial values: not needed where all are loaded next. @default {true} */
  readonly draw?: boolean;
  /** Names of the kinds of data, for metrics by kind. */
  readonly datasetTypes?: readonly string[];
  readonly onNotice?: (line: string) => void;
  /** Told of every pass and update when it is queued. */
  readonly onInstruction?: (text: string) => void;
}

export class Session implements Disposable {
  readonly #metric: AccPerplex;
  readonly #tgs = new TgsStatistic();
  readonly #started = performance.now();
  readonly #world: World;

  private constructor(
    readonly config: ResolvedConfig,
    readonly trainer: Trainer,
    readonly options: SessionOptions,
    readonly validation: readonly ValidationLoader[],
  ) {
    this.#world = options.world ?? solo;
    this.#metric = new AccPerplex(options.datasetTypes ? { typeNames: options.datasetTypes } : {});
  }

  /** @throws where model or validation data cannot be had: now, rather than at the first evaluation */
  static async open(config: ResolvedConfig, options: SessionOptions): Promise<Session> {
    const { onNotice, world: { mesh } = solo } = options;
    const shard = {
      dataRank: mesh.index("data"),
      dataWorldSize: mesh.size("data"),
      ...(onNotice ? { onNotice } : {}),
    };
    const validation = config.data.valid_every > 0 ? createValidationLoaders(config.data, shard) : [];
    const model = await initializeModel(config, options);
    const trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
    if (options.onInstruction) trainer.onInstruction = options.onInstruction;
    return new Session(config, trainer, options, validation);
  }

  /**
   * Takes tensors and state out of a checkpoint. With the model alone it is a new run on old weights; with anything
   * more, the counts of steps and batches go on too, as in InternEvo.
   *
   * @returns the position to bring the data loader to
   */
  restore(checkpoint: Checkpoint, content: readonly LoadContent[] = loadContents): DataPosition {
    const state = checkpoint.manifest.state as unknown as SessionState;
    const [optimizer, scheduler] = [content.includes("optimizer"), content.includes("scheduler")];
    loadTensors(this.trainer.model, checkpoint, optimizer ? entryKinds : ["parameter"]);
    if (content.length > 1) this.trainer.loadState(state.trainer, { optimizer, scheduler });
    return state.data;
  }

  /** What a checkpoint after `batch` keeps beside the tensors. */
  state(position: DataPosition): Json {
    return { trainer: this.trainer.state(), data: position } as unknown as Json;
  }

  /** Sums values over all ranks, which must ask for it at the same place in their work. */
  agree(values: readonly number[]): Promise<number[]> {
    return agree(this.#world, values);
  }

  /** @throws {RangeError} saying why the model cannot take a batch */
  check({ microBatches }: Pick<Batch, "microBatches">): void {
    for (const microBatch of microBatches) checkTokens(this.config, microBatch);
  }

  /** One optimizer step on one batch. */
  async step(batch: Batch): Promise<StepReport> {
    const { trainer, config } = this, started = performance.now();
    trainer.zeroGrad();
    const { loss: whole, moeLoss, microBatches } = await trainer.executeSchedule(batch);
    const loss = whole - (moeLoss ?? 0);
    const forwardBackwardSeconds = (performance.now() - started) / 1000;
    for (const { nll, correct, microBatch: { labels, typeIds } } of microBatches) {
      this.#metric.add({ nll, correct, labels, typeIds });
    }
    await this.#gatherMetric(this.#metric); // before updated parameters are on their way, behind which it would wait
    const { success, gradNorm, learningRate } = await trainer.step();
    const realTokens = this.#metric.tokens, metrics = this.#metric.report();
    this.#metric.reset();
    const seconds = (performance.now() - started) / 1000;
    // All data-parallel ranks have rows of the same length; one that has none this time knows it from the record.
    const tokensPerSecond = batch.globalRows * config.data.packed_length / seconds;
    const report = { loss, gradNorm, learningRate, tokensPerSecond, seconds, success };
    if (!success) return report;
    const { model, data } = config, dataParallelSize = this.#world.mesh.size("data");
    const record = stepRecord({
      step: batch.batchCount,
      loss: whole,
      ...(moeLoss === undefined ? {} : { moeLoss }),
      work: {
        hiddenSize: model.hidden_size,
        numLayers: model.num_layers,
        vocabSize: model.vocab_size,
        mlpRatio: model.mlp_ratio,
        seqLen: data.seq_len,
        globalBatchSize: data.micro_bsz * batch.globalRows,
        checkpoint: model.checkpoint > 0,
        useSwiglu: model.use_swiglu,
      },
      seconds,
      secondsSinceStart: (performance.now() - this.#started) / 1000,
      worldSize: this.#world.mesh.world,
      dataParallelSize,
      tokens: batch.globalRows * data.packed_length / dataParallelSize, // ranks may have a row more or less
      realTokens,
      learningRate: trainer.optimizer.learningRate.learningRate,
      lossScale: trainer.optimizer.gradScaler.scale, // the next step's, as InternEvo logs it
      gradNorm: { "0_default": gradNorm },
      numConsumedTokens: batch.after.num_consumed_tokens,
      infNanSkipBatches: trainer.infNanSkipBatches,
      cuSeqlens: batch.microBatches.map(({ segmentEnd }) => boundaries(segmentEnd)),
      adamBeta2: trainer.optimizer.beta2.beta2,
      forwardBackwardSeconds,
      metrics,
    }, this.#tgs);
    return { ...report, record };
  }

  /** Whether this rank speaks for its data-parallel replica: all of one have the same losses. */
  get #tells(): boolean {
    const { mesh } = this.#world;
    return mesh.index("tensor") === 0 && mesh.index("pipeline") === mesh.size("pipeline") - 1;
  }

  /** Makes a metric that of all ranks. */
  async #gatherMetric(metric: AccPerplex): Promise<void> {
    const own = metric.state(), sums = await agree(this.#world, this.#tells ? own : own.map(() => 0));
    metric.reset();
    metric.merge(sums);
  }

  /** Whether the record asks for an evaluation after the step just done. */
  get evaluationDue(): boolean {
    const { valid_every } = this.config.data, { stepCount } = this.trainer;
    return valid_every > 0 && stepCount > 0 && stepCount % valid_every === 0 && this.validation.length > 0;
  }

  /**
   * Loss, accuracy and perplexity on every validation set.
   *
   * @param onBatch called before each batch, with how many were and how many there are
   */
  async evaluate(onBatch?: (done: number, of: number) => void): Promise<{ record: StepRecord; loss: number }[]> {
    const results = await evaluateSets(this.trainer, this.validation, {
      onBatch,
      sum: (values) => agree(this.#world, this.#tells ? values : values.map(() => 0)),
    });
    return results.map(({ name, loss, acc, perplexity }) => ({
      loss,
      record: validationRecord(name, { stepCount: this.trainer.stepCount, loss, acc, perplexity }),
    }));
  }

  [Symbol.dispose](): void {
    this.trainer[Symbol.dispose]();
  }
}

/** `cu_seqlens` from each token's segment end. */
function boundaries(segmentEnd: Uint32Array): number[] {
  const bounds = [0];
  while (bounds.at(-1)! < segmentEnd.length) bounds.push(segmentEnd[bounds.at(-1)!]!);
  return bounds;
}
