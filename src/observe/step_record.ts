/** What is reported of one step: InternEvo's fields, in its order. */
import { getMegatronFlops, type MegatronFlopsOptions } from "./flops.ts";
import { roundTo } from "./round.ts";
import type { TgsStatistic } from "./tgs_statistic.ts";

/** Values by name; a dictionary is a group of scalars. */
export type StepRecord = Record<string, number | Record<string, number>>;

export interface StepRecordInput {
  /** Batches before this one. */
  readonly step: number;
  /** Includes the experts' loss, if any. */
  readonly loss: number;
  /** Given by models with experts only. */
  readonly moeLoss?: number;
  /** The shape of the work; the time and the number of devices are filled in. */
  readonly work: Omit<MegatronFlopsOptions, "secondsPerStep" | "worldSize">;
  /** Wall time of the step. */
  readonly seconds: number;
  readonly secondsSinceStart: number;
  readonly worldSize: number;
  readonly dataParallelSize: number;
  /** Labels of a data-parallel rank's batch, padding included. */
  readonly tokens: number;
  /** Labels with loss over all data-parallel ranks. */
  readonly realTokens: number;
  /** Of the *next* step, as InternEvo has it: schedulers have moved on when the record is written. */
  readonly learningRate: number;
  readonly lossScale: number;
  /** By parameter group (`{index}_{name}`), loss scale taken off. */
  readonly gradNorm: Readonly<Record<string, number>>;
  /** Labels of all data-parallel ranks since the run began. */
  readonly numConsumedTokens: number;
  readonly infNanSkipBatches: number;
  /** Sequence bounds of each row of the batch, first 0, last the row's length. */
  readonly cuSeqlens: readonly ArrayLike<number>[];
  readonly adamBeta2: number;
  readonly forwardBackwardSeconds: number;
  /** Left out where it was not measured: forward and backward passes that are one queue on a device. */
  readonly backwardSeconds?: number;
  /** `AccPerplex.report()`. */
  readonly metrics?: Readonly<Record<string, number>>;
}

/** Lengths of the sequences between bounds. */
function lengths(bounds: ArrayLike<number>): number[] {
  return Array.from({ length: Math.max(0, bounds.length - 1) }, (_, i) => bounds[i + 1] - bounds[i]);
}

/**
 * Builds the record and enters the step into `tgs`. Keys keep their order: people read the line, and tools the first
 * columns.
 */
export function stepRecord(input: StepRecordInput, tgs: TgsStatistic): StepRecord {
  const { seconds, worldSize, cuSeqlens } = input;
  const tokensPerDevice = input.tokens * input.dataParallelSize / worldSize;
  tgs.update({ tokensPerDevice, seconds, secondsSinceStart: input.secondsSinceStart });
  const perRow = cuSeqlens.map((bounds) => Math.max(0, bounds.length - 1));
  return {
    tflops: getMegatronFlops({ ...input.work, secondsPerStep: seconds, worldSize }),
    step: input.step,
    loss: input.loss - (input.moeLoss ?? 0),
    real_tgs: roundTo(Math.ceil(input.realTokens / worldSize) / seconds, 2),
    "tgs (tokens/gpu/second)": roundTo(tokensPerDevice / seconds, 2),
    ...tgs.report(),
    lr: input.learningRate,
    loss_scale: input.lossScale,
    grad_norm: { ...input.gradNorm },
    ...(input.moeLoss === undefined ? {} : { moe_loss: input.moeLoss }),
    micro_num: cuSeqlens.length,
    num_consumed_tokens: input.numConsumedTokens,
    inf_nan_skip_batches: input.infNanSkipBatches,
    num_samples_in_batch: perRow.reduce((sum, count) => sum + count, 0),
    largest_length: Math.max(...cuSeqlens.flatMap(lengths)),
    largest_batch: Math.max(...perRow),
    smallest_batch: Math.min(...perRow),
    adam_beta2: input.adamBeta2,
    fwd_bwd_time: roundTo(input.forwardBackwardSeconds, 2),
    ...(input.backwardSeconds === undefined ? {} : { bwd_time: roundTo(input.backwardSeconds, 2) }),
    ...input.metrics,
  };
}

/** What is reported of one validation set after step `step_count`. */
export function validationRecord(
  name: string,
  result: { stepCount: number; loss: number; acc: number; perplexity: number },
): StepRecord {
  return {
    step: result.stepCount,
    [`val/${name}_loss`]: result.loss,
    [`val/${name}_acc`]: result.acc,
    [`val/${name}_plex`]: result.perplexity,
  };
}

/**
 * One line, `key=value ` after `key=value `; dictionaries as `{'key': value, 'key': value}`.
 *
 * @example
 * ```ts
 * import { recordLine } from "./step_record.ts";
 * console.assert(recordLine({ step: 3, grad_norm: { "0_default": 1.5 } }) === "step=3 grad_norm={'0_default': 1.5} ");
 * ```
 */
export function recordLine(record: StepRecord): string {
  return Object.entries(record).map(([key, value]) => {
    if (typeof value === "number") return `${key}=${value} `;
    const items = Object.entries(value).map(([name, item]) => `'${name}': ${item}`);
    return `${key}={${items.join(", ")}} `;
  }).join("");
}
