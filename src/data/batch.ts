/**
 * What a trainer consumes. A micro-batch is flat over T = `packed_length` tokens: packed data is one row of T tokens
 * that holds several segments, unpacked data is `micro_bsz` rows of `seq_len` tokens laid end to end, each row one
 * segment. Attention never crosses a segment.
 */
import type { StreamCursor } from "./stream/stream_loader.ts";

/** A label with this value takes no part in the loss. */
export const ignoreIndex = -100;

/** T tokens for one forward and backward pass. All arrays have length T. */
export interface MicroBatch {
  readonly inputIds: Uint32Array<ArrayBuffer>;
  /** The token to predict at each place, or `ignoreIndex`. */
  readonly labels: Int32Array<ArrayBuffer>;
  /** Position inside the segment, for rotary embedding. */
  readonly positions: Uint32Array<ArrayBuffer>;
  /** First index (into 0…T−1) of the segment that each token belongs to. */
  readonly segmentStart: Uint32Array<ArrayBuffer>;
  /** One past the last index of the segment that each token belongs to. */
  readonly segmentEnd: Uint32Array<ArrayBuffer>;
  /** Kind of data (sub-folder of the training folder), for metrics by kind. */
  readonly typeIds: Uint32Array<ArrayBuffer>;
  readonly segments: number;
  readonly longestSegment: number;
}

/**
 * Where the data stands after a batch: small, and plain JSON. `global_position` alone finds the place again, or `cursor`
 * in a stream; the other fields are what people read, and what guards against resuming with other data.
 */
export interface DataPosition {
  /** Rows consumed by all data-parallel ranks together since training began, over all epochs. */
  readonly global_position: number;
  /** Batches consumed since training began: the index of the next batch. */
  readonly batch_count: number;
  /** Times that all the data was gone through. */
  readonly epoch: number;
  /** Rows consumed in this epoch, by one rank of `data_world_size`. */
  readonly num_consumed_samples_in_epoch: number;
  /** Label elements of all ranks in the batches that were not skipped. */
  readonly num_consumed_tokens: number;
  /** Data-parallel ranks over which `micro_num` counts; stays when a run goes on with another number of ranks. */
  readonly data_world_size: number;
  readonly batch_size: number;
  readonly raw_rampup_batch_size: string;
  readonly seed: number;
  /** Rows in the data set; 0 in a stream, where nobody knows. */
  readonly dataset_rows: number;
  /** Only of a mixture: its folders and their shares. */
  readonly mixture?: string;
  /** Only of streaming data: where reading goes on. */
  readonly cursor?: StreamCursor;
}

/** What one data-parallel rank consumes in one optimizer step. */
export interface Batch {
  /** Empty for a batch that `skip_batches` drops. */
  readonly microBatches: MicroBatch[];
  /** Rows (packs) of this rank; one row is one micro-batch. */
  readonly rows: number;
  /** Rows of all data-parallel ranks together. */
  readonly globalRows: number;
  /** Tokens of this rank, padding included: rows × T. */
  readonly tokens: number;
  /** Index of this batch since training began. */
  readonly batchCount: number;
  readonly epoch: number;
  /** True when `skip_batches` names this batch: it counts as consumed, and no step is taken. */
  readonly skipped: boolean;
  /** The position once this batch is consumed: what a checkpoint after it keeps. */
  readonly after: DataPosition;
}

/**
 * Fields of a micro-batch from T signed tokens, raw labels and segment boundaries. A negative token is context only: its
 * magnitude is the input, and it is never a target; neither is id 0.
 */
export function toMicroBatch(
  row: {
    tokens: Int32Array;
    labels: Int32Array;
    indexes: Uint32Array;
    typeIds: Uint32Array;
    cuSeqlens: ArrayLike<number>;
  },
): MicroBatch {
  const length = row.tokens.length;
  const inputIds = new Uint32Array(length);
  const labels = new Int32Array(length);
  const segmentStart = new Uint32Array(length);
  const segmentEnd = new Uint32Array(length);
  for (let i = 0; i < length; i++) {
    inputIds[i] = Math.abs(row.tokens[i]);
    labels[i] = row.labels[i] > 0 ? row.labels[i] : ignoreIndex;
  }
  let segments = 0;
  let longestSegment = 0;
  for (let s = 0; s + 1 < row.cuSeqlens.length; s++) {
    const start = row.cuSeqlens[s];
    const end = row.cuSeqlens[s + 1];
    if (end === start) continue;
    segmentStart.fill(start, start, end);
    segmentEnd.fill(end, start, end);
    segments++;
    longestSegment = Math.max(longestSegment, end - start);
  }
  return {
    inputIds,
    labels,
    positions: Uint32Array.from(row.indexes),
    segmentStart,
    segmentEnd,
    typeIds: Uint32Array.from(row.typeIds),
    segments,
    longestSegment,
  };
}
