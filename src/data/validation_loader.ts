/** Batches for evaluation: samples unpacked, in file order, one set for each folder. */
import { join } from "node:path";
import { ignoreIndex, type MicroBatch, toMicroBatch } from "./batch.ts";
import { dataParallelIndices } from "./data_parallel_sampler.ts";
import { dummyDataset } from "./dummy_dataset.ts";
import { validationSetNames, walkTokenFolders } from "./folder.ts";
import type { PackedRow } from "./packed_dataset.ts";
import { openTokenFile, type SampleSource } from "./token_file.ts";
import { type DataShard, dummySamplesPerRank } from "./train_loader.ts";

/** The fields of the run record's `data` section that evaluation depends on. */
export interface ValidationDataOptions {
  /** Nothing: the built-in dummy data, as one set named "val". */
  readonly valid_folder?: string | null;
  readonly seq_len: number;
  readonly micro_bsz: number;
  readonly micro_num?: number;
  /** Micro-batches of a validation batch. @default {micro_num} */
  readonly valid_micro_num?: number;
  /** @default {true} */
  readonly fixed_random_dataset_seqlen?: boolean;
}

/** One validation set. */
export interface ValidationLoader {
  readonly name: string;
  /** Batches for this rank; the same number for every rank. */
  readonly length: number;
  /** Rows (samples) of a batch. */
  readonly batchRows: number;
  /** All batches in order, from the first, as often as asked: each a list of micro-batches of `micro_bsz` rows. */
  batches(): Generator<MicroBatch[]>;
}

/** Validation files keep samples of at least this many tokens. */
const minValidationLength = 50;

/** A list of samples of a validation set. */
export interface ValidationSet {
  readonly name: string;
  readonly sources: readonly SampleSource[];
  readonly samples: number;
  sample(index: number): Int32Array;
}

function validationSet(name: string, sources: readonly SampleSource[]): ValidationSet {
  const samples = sources.reduce((sum, source) => sum + source.lengths.length, 0);
  return {
    name,
    sources,
    samples,
    sample(index) {
      for (const source of sources) {
        if (index < source.lengths.length) return source.read(index);
        index -= source.lengths.length;
      }
      throw new RangeError(`Validation set ${name} has ${samples} samples`);
    },
  };
}

/**
 * The validation sets of a folder: every directory that holds `.bin` files whose names begin with `prefix`.
 */
export function openValidationSets(folder: string, prefix = "", minLength = minValidationLength): ValidationSet[] {
  const folders = walkTokenFolders(folder, "data.valid_folder")
    .map(({ path, files }) => ({ path, files: files.filter((file) => file.startsWith(prefix)) }))
    .filter(({ files }) => files.length > 0);
  const names = validationSetNames(folder, folders);
  return folders.map(({ path, files }, i) =>
    validationSet(names[i], files.map((file) => openTokenFile(join(path, file), { minLength })))
  );
}

/** Rows of S: each sample cut to S or padded on the right, labels shifted by one, the last one ignored. */
export function collateValidation(samples: readonly Int32Array[], seqLen: number): PackedRow {
  const length = samples.length * seqLen;
  const row = {
    tokens: new Int32Array(length),
    labels: new Int32Array(length).fill(ignoreIndex),
    indexes: new Uint32Array(length),
    typeIds: new Uint32Array(length),
    cuSeqlens: [0],
  };
  samples.forEach((sample, r) => {
    const cut = sample.subarray(0, seqLen);
    row.tokens.set(cut, r * seqLen);
    row.labels.set(cut.subarray(1), r * seqLen);
    for (let i = 0; i < seqLen; i++) row.indexes[r * seqLen + i] = i;
    row.cuSeqlens.push((r + 1) * seqLen);
  });
  return row;
}

/**
 * Opens the validation sets for one rank. A set with too few samples for one micro-batch on every rank is left out, on
 * all ranks alike, with a notice.
 */
export function createValidationLoaders(data: ValidationDataOptions, shard: DataShard): ValidationLoader[] {
  const { seq_len: seqLen, micro_bsz: microBsz } = data;
  const { dataRank, dataWorldSize } = shard;
  const sets = data.valid_folder ? openValidationSets(data.valid_folder) : [
    validationSet("val", [
      dummyDataset({
        samples: dummySamplesPerRank * dataWorldSize,
        seqLen,
        fixedSeqLen: data.fixed_random_dataset_seqlen ?? true,
      }),
    ]),
  ];
  if (sets.length === 0) {
    throw new RangeError(
      `data.valid_folder ${data.valid_folder} holds no .bin files; \`troupe tokenize\` makes them from text`,
    );
  }
  const loaders: ValidationLoader[] = [];
  for (const set of sets) {
    const wanted = (data.valid_micro_num ?? data.micro_num ?? 1) * microBsz;
    const available = Math.min(wanted, Math.floor(set.samples / dataWorldSize));
    const batchRows = Math.floor(available / microBsz) * microBsz;
    if (batchRows === 0) {
      shard.onNotice?.(
        `Validation set ${set.name} is left out: it has ${set.samples} samples of ${minValidationLength} tokens or more, ` +
          `and one batch takes ${microBsz * dataWorldSize} (data.micro_bsz ${microBsz} on each of ${
            dataWorldSize === 1 ? "1 rank" : `${dataWorldSize} data-parallel ranks`
          }); more validation text, or a smaller data.micro_bsz, would work`,
      );
      continue;
    }
    const indices = dataParallelIndices({ samples: set.samples, rank: dataRank, worldSize: dataWorldSize });
    const length = Math.floor(indices.length / batchRows);
    loaders.push({
      name: set.name,
      length,
      batchRows,
      *batches() {
        for (let batch = 0; batch < length; batch++) {
          const microBatches: MicroBatch[] = [];
          for (let m = 0; m < batchRows; m += microBsz) {
            const first = batch * batchRows + m;
            // A sample lives until the next read, hence the copies.
            const samples = Array.from(indices.subarray(first, first + microBsz), (index) => set.sample(index).slice());
            microBatches.push(toMicroBatch(collateValidation(samples, seqLen)));
          }
          yield microBatches;
        }
      },
    });
  }
  return loaders;
}
