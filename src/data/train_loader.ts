/** From the `data` section of a run record to batches for one data-parallel rank. */
import { join, relative } from "node:path";
import { type Batch, type DataPosition, type MicroBatch, toMicroBatch } from "./batch.ts";
import { type BatchSize, batchSizeFrom } from "./batch_size.ts";
import { isSkipped, parseSkipBatches } from "./batch_skipper.ts";
import { dummyDataset } from "./dummy_dataset.ts";
import { datasetTypes, minLengthFor, typeIdOfPath, walkTokenFolders } from "./folder.ts";
import {
  type ConcatenatedRows,
  concatenateRows,
  packIntoOne,
  type PackOptions,
  packWithCut,
  type RowDataset,
  splitUnpacked,
  type Tape,
  tapeOf,
  unpackedRows,
} from "./packed_dataset.ts";
import { describeMixture, type MixedFolder, MixtureSampler, parseMixture } from "./mixture.ts";
import { openSharedTables, type SharedTables } from "./shared_tables.ts";
import { StaticBatchSampler } from "./static_batch_sampler.ts";
import { createStreamLoader } from "./stream/stream_loader.ts";
import { closeTokenFiles, openTokenFile, type SampleSource } from "./token_file.ts";

/** The fields of the run record's `data` section that training batches depend on, with the same meanings. */
export interface TrainDataOptions {
  /** @default {"tokenized"} */
  readonly type?: string;
  /** Nothing: the built-in dummy data. */
  readonly train_folder?: string | null;
  readonly seq_len: number;
  readonly micro_bsz: number;
  /** @default {1} */
  readonly micro_num?: number;
  /** @default {false} */
  readonly pack_sample_into_one?: boolean;
  /** @default {true} */
  readonly use_packed_dataset?: boolean;
  /** Weight of each sub-folder of `train_folder`; nothing: every row once an epoch. */
  readonly mixture?: Readonly<Record<string, number>> | null;
  /** Share the tables of where samples are among the processes of this host, in `shm_path`. @default {false} */
  readonly use_shm?: boolean;
  /** @default {"/dev/shm/metacache"} */
  readonly shm_path?: string;
  readonly min_length?: number;
  readonly min_length_dict?: Readonly<Record<string, number>> | null;
  readonly rampup_batch_size?: string | null;
  readonly skip_batches?: string | null;
  /** @default {1024} */
  readonly seed?: number;
  /** @default {true} */
  readonly fixed_random_dataset_seqlen?: boolean;
  /** Of streaming data: the tokenizer. */
  readonly tokenizer_path?: string | null;
  /** Of streaming data: the column that holds the text. @default {"text"} */
  readonly content_name?: string;
  /** Of streaming data: a folder inside `train_folder`. */
  readonly subset_name?: string | null;
  /**
   * The `.bin` files in the order in which their rows are numbered, relative to `train_folder`. Left out, the folder is
   * walked in the order of names.
   */
  readonly files?: readonly string[];
}

/** Which part of every batch is wanted. */
export interface DataShard {
  readonly dataRank: number;
  readonly dataWorldSize: number;
  /** Data-parallel ranks that the run began with, over which `micro_num` counts. @default {dataWorldSize} */
  readonly referenceWorldSize?: number;
  /** Whether the model runs in pipeline stages (stricter rules for batch sizes). @default {false} */
  readonly pipeline?: boolean;
  /** Told what people should know: sets that were left out, and why. */
  readonly onNotice?: (message: string) => void;
}

export interface TrainLoader {
  /** Names of the kinds of data; `typeIds` are indices into it. */
  readonly datasetTypes: readonly string[];
  /** Rows (packs) in the data set; 0 in a stream, where nobody knows. */
  readonly rows: number;
  /** Tokens in a row: T of every micro-batch. */
  readonly packedLength: number;
  /** Of a mixture: its folders, their shares of all rows, and their own rows (0 in a stream). */
  readonly mixture?: readonly (MixedFolder & { readonly rows: number })[];
  /** Batches in the current epoch; 0 in a stream, where nobody knows. */
  readonly batchesPerEpoch: number;
  /**
   * The next batch, epoch after epoch without end. Rejects when the data on disk is damaged, with file and place. Call it
   * again once it has settled.
   */
  next(): Promise<Batch>;
  /** Where the next batch begins. A loader that works ahead: keep the `after` of the last batch used instead. */
  state(): DataPosition;
  /**
   * Goes on from a position. Batches of another number of data-parallel ranks stay as they were and are dealt to the ranks
   * there are now. Throws `RangeError` that names what differs when it was taken with other data, seed or ramp-up.
   */
  load(position: DataPosition): void;
  /** Closes files. */
  close(): void;
}

/** Types named in metrics when there is no folder to take names from. */
const dummyTypes = ["en", "cn", "code"];

/** Samples of a dummy set for each data-parallel rank. */
export const dummySamplesPerRank = 500;

function rowsOf(source: SampleSource | Tape, data: TrainDataOptions, options: PackOptions): RowDataset {
  if (data.use_packed_dataset === false) return unpackedRows(source, { ...options, microBsz: data.micro_bsz });
  return data.pack_sample_into_one ? packIntoOne(source, options) : packWithCut(source, options);
}

/** The files of `train_folder` as rows, with their types. Files in which no sample is long enough are left out. */
export function openTrainFolder(
  data: TrainDataOptions,
): { rows: ConcatenatedRows; types: string[]; shared?: SharedTables } {
  const folder = data.train_folder!;
  const types = datasetTypes(folder);
  const files = data.files?.map((file) => join(folder, file)) ??
    walkTokenFolders(folder, "data.train_folder").flatMap(({ path, files }) => files.map((file) => join(path, file)));
  if (files.length === 0) {
    throw new RangeError(
      `data.train_folder ${folder} holds no .bin files. They belong into sub-folders, one for each kind of data; ` +
        `\`troupe tokenize\` makes them from text`,
    );
  }
  const packedLength = data.seq_len * data.micro_bsz;
  const datasets: RowDataset[] = [];
  const placed = files.map((path) => ({
    path,
    typeId: typeIdOfPath("/" + relative(folder, path), types),
    minLength: minLengthFor(path, data.min_length, data.min_length_dict),
  }));
  const shared = data.use_shm ? openSharedTables(data.shm_path ?? "/dev/shm/metacache", placed) : undefined;
  for (const [i, { path, typeId, minLength }] of placed.entries()) {
    const tape = shared?.tapes[i] ?? tapeOf(openTokenFile(path, { minLength }));
    if (tape.samples > 0) datasets.push(rowsOf(tape, data, { seqLen: data.seq_len, packedLength, typeId }));
  }
  // Folders side by side, as a mixture needs them; files given in an order keep it.
  if (data.mixture) datasets.sort((a, b) => a.typeId - b.typeId);
  return { rows: concatenateRows(datasets), types: [...types.keys()], ...(shared && { shared }) };
}

/** The folders of a mixture and where their rows are. */
function mixedFolders(mixture: Readonly<Record<string, number>>, { rows, types }: ReturnType<typeof openTrainFolder>) {
  const places = types.map(() => ({ start: 0, rows: 0 }));
  let start = 0;
  for (const { typeId, length } of rows.datasets) {
    if (places[typeId]!.rows === 0) places[typeId]!.start = start;
    places[typeId]!.rows += length;
    start += length;
  }
  return parseMixture(mixture, types).map((folder) => {
    const place = places[types.indexOf(folder.name)]!;
    if (place.rows > 0) return { ...folder, ...place };
    throw new RangeError(
      `data.mixture gives "${folder.name}" a weight, and its files hold less than one row of micro_bsz × seq_len tokens`,
    );
  });
}

function openDummy(data: TrainDataOptions, worldSize: number): ConcatenatedRows {
  const source = dummyDataset({
    samples: dummySamplesPerRank * worldSize,
    seqLen: data.seq_len,
    fixedSeqLen: data.fixed_random_dataset_seqlen ?? true,
  });
  return concatenateRows([rowsOf(source, data, { seqLen: data.seq_len, packedLength: data.seq_len * data.micro_bsz })]);
}

/**
 * Opens the training data for one rank. Throws on anything that cannot work: missing folders and files, damaged tables,
 * fewer rows than one batch takes.
 */
export function createTrainLoader(data: TrainDataOptions, shard: DataShard): TrainLoader {
  for (const name of ["seq_len", "micro_bsz"] as const) {
    if (!(Number.isInteger(data[name]) && data[name] > 0)) {
      throw new RangeError(`data.${name} must be a positive integer; got ${data[name]}`);
    }
  }
  if (data.type === "streaming") return createStreamLoader(data, shard);
  if ((data.type ?? "tokenized") !== "tokenized") {
    throw new RangeError(`data.type ${data.type} is not supported; tokenized would work, and streaming`);
  }
  const packedLength = data.seq_len * data.micro_bsz;
  const spans = parseSkipBatches(data.skip_batches);
  const folder = data.train_folder ? openTrainFolder(data) : undefined;
  const referenceWorldSize = shard.referenceWorldSize ?? shard.dataWorldSize;
  let rows = folder?.rows ?? openDummy(data, referenceWorldSize);
  if (data.mixture && !folder) {
    throw new RangeError("data.mixture needs data.train_folder: made-up data has no folders");
  }
  const mixture = data.mixture && folder ? mixedFolders(data.mixture, folder) : undefined;
  let consumedTokens = 0;

  const makeSampler = ({ batchSize, referenceWorldSize }: BatchSize): StaticBatchSampler | MixtureSampler => {
    if (mixture) {
      return new MixtureSampler({
        folders: mixture,
        batchSize,
        rampupBatchSize: data.rampup_batch_size ?? "",
        seed: data.seed ?? 1024,
        dataRank: shard.dataRank,
        dataWorldSize: shard.dataWorldSize,
        referenceWorldSize,
      });
    }
    return new StaticBatchSampler({
      datasetRows: rows.length,
      batchSize,
      rampupBatchSize: data.rampup_batch_size ?? "",
      microBsz: data.micro_bsz,
      seed: data.seed ?? 1024,
      dataRank: shard.dataRank,
      dataWorldSize: shard.dataWorldSize,
      referenceWorldSize,
      pipeline: shard.pipeline ?? false,
    });
  };
  const microNum = data.micro_num ?? 1;
  let sampler = makeSampler({ batchSize: microNum, referenceWorldSize });

  const microBatch = (index: number): MicroBatch => {
    const row = rows.row(index);
    return toMicroBatch(data.use_packed_dataset === false ? splitUnpacked(row, data.micro_bsz, data.seq_len) : row);
  };

  const state = (): DataPosition => ({
    global_position: sampler.globalPosition,
    batch_count: sampler.batchCount,
    epoch: sampler.round,
    num_consumed_samples_in_epoch: sampler.numConsumedSamplesInEpoch,
    num_consumed_tokens: consumedTokens,
    data_world_size: sampler.referenceWorldSize,
    batch_size: sampler.options.batchSize,
    raw_rampup_batch_size: data.rampup_batch_size ?? "",
    seed: data.seed ?? 1024,
    dataset_rows: rows.length,
    ...(mixture && { mixture: describeMixture(mixture) }),
  });

  const next = (): Batch => {
    const batchCount = sampler.batchCount;
    const { indices, globalRows } = sampler.next();
    const skipped = isSkipped(spans, batchCount);
    const microBatches = skipped ? [] : Array.from(indices, microBatch);
    if (!skipped) consumedTokens += globalRows * packedLength;
    return {
      microBatches,
      rows: indices.length,
      globalRows,
      tokens: indices.length * packedLength,
      batchCount,
      epoch: sampler.round,
      skipped,
      after: state(),
    };
  };

  return {
    datasetTypes: folder?.types ?? dummyTypes,
    get rows() {
      return rows.length;
    },
    packedLength,
    ...(mixture && { mixture }),
    get batchesPerEpoch() {
      return sampler.length;
    },
    // deno-lint-ignore require-await -- a promise, so that data that arrives over a wire can be served by the same name
    next: async () => next(),
    state,
    load(position) {
      const size = batchSizeFrom(position, { microNum, dataWorldSize: shard.dataWorldSize });
      if (position.cursor) {
        throw new RangeError(
          "The saved position is one of streaming data, and this run's is tokenized. The same data, or a run from the " +
            "beginning, would work",
        );
      }
      const nextRows = folder?.rows ?? openDummy(data, position.data_world_size);
      const here = { ...state(), dataset_rows: nextRows.length };
      for (const name of ["seed", "raw_rampup_batch_size", "dataset_rows", "mixture"] as const) {
        if (position[name] !== here[name]) {
          throw new RangeError(
            `The saved position does not fit this run's data: ${name} was ${JSON.stringify(position[name])} and is ` +
              `${
                JSON.stringify(here[name])
              }. The same data and settings, or another ckpt.save_ckpt_folder for a new run, would work`,
          );
        }
      }
      rows = nextRows;
      const restored = makeSampler(size);
      restored.restore({
        round: position.epoch,
        numConsumedSamplesInEpoch: position.num_consumed_samples_in_epoch,
        batchCount: position.batch_count,
        position: position.global_position,
      });
      sampler = restored;
      consumedTokens = position.num_consumed_tokens;
    },
    close() {
      closeTokenFiles();
      folder?.shared?.close();
    },
  };
}
