/**
 * Rows of P = `packed_length` tokens made from samples. The samples of one file, shuffled with a fixed seed, form one
 * tape of tokens; a row is a piece of the tape (packing), or a few samples with padding (`use_packed_dataset: false`).
 * Rows never span files, and what is left at the end of a file is dropped.
 */
import { RandomState } from "./mt19937.ts";
import type { SampleSource } from "./token_file.ts";

/** One row as stored: tokens and labels still carry their signs (see `toMicroBatch`). All arrays have length P. */
export interface PackedRow {
  readonly tokens: Int32Array<ArrayBuffer>;
  readonly labels: Int32Array<ArrayBuffer>;
  /** Position of each token in its segment. */
  readonly indexes: Uint32Array<ArrayBuffer>;
  readonly typeIds: Uint32Array<ArrayBuffer>;
  /** Segment boundaries: 0 … P. */
  readonly cuSeqlens: number[];
}

/** Rows that can be read in any order. */
export interface RowDataset {
  readonly path: string;
  readonly length: number;
  readonly typeId: number;
  row(index: number): PackedRow;
}

export interface PackOptions {
  /** S: the longest segment. */
  readonly seqLen: number;
  /** P: tokens in a row. */
  readonly packedLength: number;
  /** @default {0} */
  readonly typeId?: number;
}

/** Seed of every file's order; not the run's seed. */
const shuffleSeed = 1024;

/** The shuffled samples of a file as one tape of tokens. */
export interface Tape {
  readonly path: string;
  readonly samples: number;
  readonly tokens: number;
  /** Tokens on the tape up to and including the k-th sample. */
  end(k: number): number;
  /** Signed tokens of the k-th sample; valid until the next read. */
  read(k: number): Int32Array;
}

/** The order of samples, and where each ends on the tape. */
export function shuffledOrder({ lengths }: SampleSource): { order: Uint32Array; ends: Float64Array } {
  const order = new RandomState(shuffleSeed).permutation(lengths.length);
  const ends = new Float64Array(order.length);
  let tokens = 0;
  for (let k = 0; k < order.length; k++) ends[k] = tokens += lengths[order[k]];
  return { order, ends };
}

/** The tape of a source. Samples are put in order when the first is read: how many rows there are is known before. */
export function tapeOf(source: SampleSource): Tape {
  let made: ReturnType<typeof shuffledOrder> | undefined;
  const tape = () => made ??= shuffledOrder(source);
  return {
    path: source.path,
    samples: source.lengths.length,
    tokens: source.totalTokens,
    end: (k) => tape().ends[k],
    read: (k) => source.read(tape().order[k]),
  };
}

const asTape = (samples: SampleSource | Tape): Tape => "end" in samples ? samples : tapeOf(samples);

/** First k of `count` with `end(k) > place`. */
function sampleAt(count: number, end: (k: number) => number, place: number): number {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (end(middle) > place) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** A row of padding without segments. */
export function emptyRow(length: number): PackedRow {
  return {
    tokens: new Int32Array(length),
    labels: new Int32Array(length),
    indexes: new Uint32Array(length),
    typeIds: new Uint32Array(length),
    cuSeqlens: [0],
  };
}

/** Copies `piece` to `row` at `at`, labels shifted left by one; the last label is `lastLabel`. */
function place(row: PackedRow, at: number, piece: Int32Array, lastLabel: number, typeId: number): void {
  row.tokens.set(piece, at);
  row.labels.set(piece.subarray(1), at);
  row.labels[at + piece.length - 1] = lastLabel;
  row.typeIds.fill(typeId, at, at + piece.length);
}

/** Ends the segment that begins at the last boundary, numbering its positions from zero. */
export function endSegment(row: PackedRow, end: number): void {
  const start = row.cuSeqlens[row.cuSeqlens.length - 1];
  for (let i = start; i < end; i++) row.indexes[i] = i - start;
  row.cuSeqlens.push(end);
}

/** Calls `visit` for every piece of the tape in row `index`, in order. */
function visitPieces(
  tape: Tape,
  packedLength: number,
  index: number,
  visit: (at: number, sample: Int32Array, from: number, to: number) => void,
): void {
  const rowStart = index * packedLength;
  const rowEnd = rowStart + packedLength;
  let at = rowStart;
  let k = sampleAt(tape.samples, tape.end, rowStart);
  for (let sampleStart = k > 0 ? tape.end(k - 1) : 0; at < rowEnd; k++) {
    const sampleEnd = tape.end(k), end = Math.min(sampleEnd, rowEnd);
    if (sampleEnd > sampleStart) visit(at - rowStart, tape.read(k), at - sampleStart, end - sampleStart);
    at = end;
    sampleStart = sampleEnd;
  }
}

function checkIndex(index: number, length: number, path: string): void {
  if (!(index >= 0 && index < length)) throw new RangeError(`${path} has ${length} rows; row ${index} was asked for`);
}

/** Rows of P tokens of a tape, each filled when it is asked for. */
function rowsOf(
  tape: Tape,
  length: number,
  { packedLength, typeId = 0 }: PackOptions,
  fill: (row: PackedRow, index: number) => void,
): RowDataset {
  return {
    path: tape.path,
    length,
    typeId,
    row(index) {
      checkIndex(index, length, tape.path);
      const row = emptyRow(packedLength);
      fill(row, index);
      return row;
    },
  };
}

/**
 * Packing with cut (`pack_sample_into_one: false`): every sample is a segment of its own, cut into segments of S where it
 * is longer. A sample that the end of the row cuts keeps its next token as the last label.
 */
export function packWithCut(samples: SampleSource | Tape, options: PackOptions): RowDataset {
  const tape = asTape(samples);
  const { seqLen, packedLength, typeId = 0 } = options;
  const length = Math.floor(tape.tokens / packedLength);
  return rowsOf(tape, length, options, (row, index) => {
    visitPieces(tape, packedLength, index, (at, sample, from, to) => {
      place(row, at, sample.subarray(from, to), to < sample.length ? sample[to] : -100, typeId);
      for (let end = at + seqLen; end < at + to - from; end += seqLen) endSegment(row, end);
      endSegment(row, at + to - from);
    });
  });
}

/**
 * Packing into one (`pack_sample_into_one: true`): segments are S tokens whatever the samples are, so samples that share
 * a segment attend to each other. Throws `RangeError` when P is not a multiple of S.
 */
export function packIntoOne(samples: SampleSource | Tape, options: PackOptions): RowDataset {
  const tape = asTape(samples);
  const { seqLen, packedLength, typeId = 0 } = options;
  if (packedLength % seqLen !== 0) {
    throw new RangeError(
      `With pack_sample_into_one, packed_length (${packedLength}) must be a multiple of seq_len (${seqLen})`,
    );
  }
  const length = Math.floor(tape.tokens / packedLength);
  return rowsOf(tape, length, options, (row, index) => {
    visitPieces(tape, packedLength, index, (at, sample, from, to) => {
      place(row, at, sample.subarray(from, to), -100, typeId);
    });
    for (let end = seqLen; end <= packedLength; end += seqLen) endSegment(row, end);
  });
}

/**
 * No packing (`use_packed_dataset: false`): row i joins the `microBsz` shuffled samples from i·`microBsz` on, each cut to
 * S tokens; the rest up to P is padding. There are T // P rows (T: tokens of all samples), but no more than the samples
 * fill.
 */
export function unpackedRows(
  samples: SampleSource | Tape,
  options: PackOptions & { readonly microBsz: number },
): RowDataset {
  const tape = asTape(samples);
  const { seqLen, packedLength, microBsz, typeId = 0 } = options;
  const length = Math.min(Math.floor(tape.tokens / packedLength), Math.ceil(tape.samples / microBsz));
  return rowsOf(tape, length, options, (row, index) => {
    let at = 0;
    for (let k = index * microBsz; k < Math.min((index + 1) * microBsz, tape.samples); k++) {
      const sample = tape.read(k);
      const piece = sample.subarray(0, seqLen);
      if (piece.length === 0) continue;
      place(row, at, piece, -100, typeId);
      at += piece.length;
      endSegment(row, at);
    }
    if (at < packedLength) endSegment(row, packedLength);
  });
}

/**
 * Splits an unpacked row by its first `microBsz` segments into `microBsz` rows of S, padded on the right: what a model
 * without packing computes. Every row is one segment with positions 0…S−1.
 */
export function splitUnpacked(row: PackedRow, microBsz: number, seqLen: number): PackedRow {
  const split = emptyRow(microBsz * seqLen);
  for (let r = 0; r < microBsz; r++) {
    const start = row.cuSeqlens[r];
    const end = row.cuSeqlens[r + 1];
    if (end !== undefined) {
      const stop = Math.min(end, start + seqLen);
      split.tokens.set(row.tokens.subarray(start, stop), r * seqLen);
      split.labels.set(row.labels.subarray(start, stop), r * seqLen);
      split.typeIds.set(row.typeIds.subarray(start, stop), r * seqLen);
    }
    endSegment(split, (r + 1) * seqLen);
  }
  return split;
}

/** Several data sets one after the other. */
export interface ConcatenatedRows {
  readonly datasets: readonly RowDataset[];
  readonly length: number;
  /** `cumulativeLengths[i]`: rows of the first i + 1 data sets. */
  readonly cumulativeLengths: readonly number[];
  row(index: number): PackedRow;
}

export function concatenateRows(datasets: readonly RowDataset[]): ConcatenatedRows {
  const ends = new Float64Array(datasets.length);
  let length = 0;
  datasets.forEach((dataset, i) => ends[i] = length += dataset.length);
  return {
    datasets,
    length,
    cumulativeLengths: [...ends],
    row(index) {
      checkIndex(index, length, "The data set");
      const i = sampleAt(ends.length, (i) => ends[i], index);
      return datasets[i].row(index - (ends[i] - datasets[i].length));
    },
  };
}
