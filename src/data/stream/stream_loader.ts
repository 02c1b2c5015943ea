/**
 * Batches from a streaming data set (`data.type: streaming`). All ranks go through the same rows, and each keeps those
 * dealt to it: so one cursor says where the data stands, for any number of ranks. Every rank's loader therefore
 * tokenizes all of the text; where that is too slow, `troupe tokenize` does it once, beforehand.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { type Batch, type DataPosition, type MicroBatch, toMicroBatch } from "../batch.ts";
import { batchSizeFrom } from "../batch_size.ts";
import { isSkipped, parseSkipBatches } from "../batch_skipper.ts";
import { datasetTypes, minLengthFor } from "../folder.ts";
import { mixSeeds } from "../mix_seeds.ts";
import { createMixer, describeMixture, parseMixture } from "../mixture.ts";
import { parseRampUp, rowsOfBatch } from "../ramp_up.ts";
import { loadTokenizer, type Tokenizer } from "../tokenizer.ts";
import type { DataShard, TrainDataOptions, TrainLoader } from "../train_loader.ts";
import { loadChatTemplate } from "./chat.ts";
import { type DocumentStream, openDocumentStream, type StreamDocument, type StreamPlace } from "./document_stream.ts";
import { type ReadRange, readRange, retrying } from "./read_range.ts";
import { hashRowFiles, listRowFiles, type RowFile } from "./row_file.ts";
import { createStreamRows, type StreamRows } from "./stream_rows.ts";

/** Where one folder's documents stand. */
interface FolderPlace extends StreamPlace {
  /** Tokens of the next document that are in the batches before. */
  readonly token: number;
}

/** Where a streaming data set stands: plain JSON, a few numbers; of a mixture, for each of its folders. */
export type StreamCursor = StreamIdentity & (FolderPlace | { readonly folders: Readonly<Record<string, FolderPlace>> });

interface StreamIdentity {
  /** What the files' names and sizes hash to. */
  readonly files: string;
  /** What the tokenizer's file and `data.content_name` hash to. */
  readonly text: string;
}

/** For tests and unusual disks. */
export interface StreamSettings {
  /** @default {readRange} */
  readonly read?: ReadRange;
  /** Documents that are shuffled together. @default {1024} */
  readonly blockDocuments?: number;
  /** Rows that may be corrupt in an epoch. @default {1000} */
  readonly maxCorrupt?: number;
}

/** Tokens of a document with bos and eos where the tokenizer has them, cut to `seqLen`. */
function encoder(tokenizer: Tokenizer, seqLen: number, data: TrainDataOptions) {
  const { bosId, eosId } = tokenizer;
  return ({ text, path }: StreamDocument): Int32Array => {
    const ids = tokenizer.encode(text);
    if (ids.length === 0) return new Int32Array(0);
    // Chat templates mostly write these themselves.
    if (bosId !== undefined && ids[0] !== bosId) ids.unshift(bosId);
    if (eosId !== undefined && ids.at(-1) !== eosId) ids.push(eosId);
    if (ids.length < minLengthFor(path, data.min_length, data.min_length_dict)) return new Int32Array(0);
    return Int32Array.from(ids.length > seqLen ? ids.slice(0, seqLen) : ids);
  };
}

/** See `createTrainLoader`. Throws where folder, files or tokenizer are missing or cannot be used. */
export function createStreamLoader(
  data: TrainDataOptions,
  shard: DataShard,
  settings: StreamSettings = {},
): TrainLoader {
  const { seq_len: seqLen, train_folder: folder, tokenizer_path: tokenizerPath, content_name: content = "text" } = data;
  if (!folder) throw new RangeError("data.train_folder is missing: data.type streaming needs a folder of data");
  if (!tokenizerPath) throw new RangeError("data.tokenizer_path is missing: data.type streaming needs a tokenizer");
  if (data.use_packed_dataset === false) {
    throw new RangeError("data.use_packed_dataset false does not go with data.type streaming; true would work");
  }
  const packedLength = seqLen * data.micro_bsz, seed = data.seed ?? 1024, microNum = data.micro_num ?? 1;
  let batchSize = microNum, ramp = parseRampUp(data.rampup_batch_size, batchSize);
  const spans = parseSkipBatches(data.skip_batches);
  const top = data.subset_name ? join(folder, data.subset_name) : folder;
  const mixed = data.mixture ? parseMixture(data.mixture, [...datasetTypes(top).keys()]) : undefined;
  const filesOf = mixed?.map(({ name }) => listRowFiles(join(top, name))) ?? [listRowFiles(top)];
  const allFiles = mixed
    ? filesOf.flatMap((files, i) => files.map((file): RowFile => ({ ...file, name: `${mixed[i]!.name}/${file.name}` })))
    : filesOf[0]!;
  const tokenizer = loadTokenizer(tokenizerPath);
  const encode = encoder(tokenizer, seqLen, data);
  const chat = loadChatTemplate(tokenizer.path);
  const textHash = createHash("sha256").update(Deno.readFileSync(tokenizer.path)).update(content)
    .update(chat?.source ?? "");
  const identity = { files: hashRowFiles(allFiles), text: textHash.digest("hex").slice(0, 32) };
  const notices = shard.onNotice && { onNotice: shard.onNotice };
  const read = retrying(settings.read ?? readRange, { ...notices });

  /** One; of a mixture, one for each folder. */
  let sources: { readonly stream: DocumentStream; readonly rows: StreamRows }[] = [];
  const mixer = mixed && createMixer(mixed.map(({ share }) => share), seed);
  let world = shard.referenceWorldSize ?? shard.dataWorldSize;
  let batchCount = 0, position = 0, consumedInEpoch = 0, consumedTokens = 0;
  const openAt = (places: readonly (FolderPlace | undefined)[]) => {
    sources = filesOf.map((files, i) => {
      const own = mixed ? mixSeeds(seed, i) : seed;
      const { token = 0, ...place } = places[i] ?? {};
      const from = places[i] && place as StreamPlace;
      const stream = openDocumentStream({ ...settings, ...notices, files, content, seed: own, read, chat }, from);
      const fill = data.pack_sample_into_one ?? false;
      return { stream, rows: createStreamRows({ stream, encode, packedLength, fill, token }) };
    });
  };
  openAt([]);
  /** Times that all folders were gone through. */
  const epoch = () => Math.min(...sources.map(({ stream }) => stream.place().epoch));

  const state = (): DataPosition => {
    const places = sources.map(({ rows }): FolderPlace => {
      const { stream, token } = rows.place();
      return { ...stream, token };
    });
    const folders = mixed && Object.fromEntries(mixed.map(({ name }, i) => [name, places[i]!]));
    return {
      global_position: position,
      batch_count: batchCount,
      epoch: epoch(),
      num_consumed_samples_in_epoch: consumedInEpoch / world,
      num_consumed_tokens: consumedTokens,
      data_world_size: world,
      batch_size: batchSize,
      raw_rampup_batch_size: data.rampup_batch_size ?? "",
      seed,
      dataset_rows: 0,
      ...(mixed && { mixture: describeMixture(mixed) }),
      cursor: { ...(folders ? { folders } : places[0]!), ...identity },
    };
  };

  return {
    datasetTypes: mixed?.map(({ name }) => name) ?? ["en"],
    rows: 0,
    ...(mixed && { mixture: mixed.map((folder) => ({ ...folder, rows: 0 })) }),
    packedLength,
    batchesPerEpoch: 0,
    async next(): Promise<Batch> {
      const globalRows = rowsOfBatch(ramp, batchSize, batchCount) * world;
      const skipped = isSkipped(spans, batchCount), microBatches: MicroBatch[] = [];
      let mine = 0;
      for (let i = 0; i < globalRows; i++) {
        const before = epoch(), source = mixer?.at(position + i).source ?? 0;
        const row = await sources[source]!.rows.next();
        row.typeIds.fill(source);
        if (epoch() !== before) consumedInEpoch = 0;
        consumedInEpoch++;
        if (i % shard.dataWorldSize !== shard.dataRank) continue;
        mine++;
        if (!skipped) microBatches.push(toMicroBatch(row));
      }
      position += globalRows;
      if (!skipped) consumedTokens += globalRows * packedLength;
      return {
        microBatches,
        rows: mine,
        globalRows,
        tokens: mine * packedLength,
        batchCount: batchCount++,
        epoch: epoch(),
        skipped,
        after: state(),
      };
    },
    state,
    load(from) {
      const size = batchSizeFrom(from, { microNum, dataWorldSize: shard.dataWorldSize });
      const { cursor } = from;
      if (!cursor) {
        throw new RangeError(
          "The saved position is one of tokenized data, and this run streams. The same data, or a run from the " +
            "beginning, would work",
        );
      }
      const misfit = (what: string) =>
        new RangeError(
          `The saved position does not fit this run's data: ${what}. The same data and settings, or another ` +
            `ckpt.save_ckpt_folder for a new run, would work`,
        );
      const here = state();
      for (const name of ["seed", "raw_rampup_batch_size", "mixture"] as const) {
        if (from[name] !== here[name]) {
          throw misfit(`${name} was ${JSON.stringify(from[name])} and is ${JSON.stringify(here[name])}`);
        }
      }
      if (cursor.files !== identity.files) throw misfit(`the files of ${folder}, or their sizes, are others now`);
      if (cursor.text !== identity.text) throw misfit("the tokenizer or data.content_name is another now");
      if ("folders" in cursor) openAt(mixed!.map(({ name }) => cursor.folders[name]));
      else {
        const { files: _files, text: _text, ...place } = cursor;
        openAt([place]);
      }
      ({ batchSize, referenceWorldSize: world } = size);
      ramp = parseRampUp(data.rampup_batch_size, batchSize);
      batchCount = from.batch_count;
      position = from.global_position;
      consumedInEpoch = Math.round(from.num_consumed_samples_in_epoch * world);
      consumedTokens = from.num_consumed_tokens;
    },
    close: () => sources.forEach(({ stream }) => void stream.close()),
  };
}
