/**
 * Batches from a streaming data set (`data.type: streaming`). All ranks go through the same rows, and each keeps those
 * dealt to it: so one cursor says where the data stands, for any number of ranks. Every rank's loader therefore
 * tokenizes all of the text; where that is too slow, `troupe tokenize` does it once, beforehand.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { type Batch, type DataPosition, type MicroBatch, toMicroBatch } from "../batch.ts";
import { isSkipped, parseSkipBatches } from "../batch_skipper.ts";
import { minLengthFor } from "../folder.ts";
import { parseRampUp, rowsOfBatch } from "../ramp_up.ts";
import { loadTokenizer, type Tokenizer } from "../tokenizer.ts";
import type { DataShard, TrainDataOptions, TrainLoader } from "../train_loader.ts";
import { type DocumentStream, openDocumentStream, type StreamDocument, type StreamPlace } from "./document_stream.ts";
import { type ReadRange, readRange, retrying } from "./read_range.ts";
import { hashRowFiles, listRowFiles } from "./row_file.ts";
import { createStreamRows, type StreamRows } from "./stream_rows.ts";

/** Where a streaming data set stands: plain JSON, a few numbers. */
export interface StreamCursor extends StreamPlace {
  /** Tokens of the next document that are in the batches before. */
  readonly token: number;
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
    if (bosId !== undefined) ids.unshift(bosId);
    if (eosId !== undefined) ids.push(eosId);
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
  const packedLength = seqLen * data.micro_bsz, seed = data.seed ?? 1024, batchSize = data.micro_num ?? 1;
  const ramp = parseRampUp(data.rampup_batch_size, batchSize);
  const spans = parseSkipBatches(data.skip_batches);
  const files = listRowFiles(data.subset_name ? join(folder, data.subset_name) : folder);
  const tokenizer = loadTokenizer(tokenizerPath);
  const encode = encoder(tokenizer, seqLen, data);
  const textHash = createHash("sha256").update(Deno.readFileSync(tokenizer.path)).update(content);
  const identity = { files: hashRowFiles(files), text: textHash.digest("hex").slice(0, 32) };
  const notices = shard.onNotice && { onNotice: shard.onNotice };
  const read = retrying(settings.read ?? readRange, { ...notices });

  let stream: DocumentStream, rows: StreamRows;
  let world = shard.referenceWorldSize ?? shard.dataWorldSize;
  let batchCount = 0, position = 0, consumedInEpoch = 0, consumedTokens = 0;
  const openAt = (place?: StreamPlace, token = 0) => {
    stream = openDocumentStream({ ...settings, ...notices, files, content, seed, read }, place);
    rows = createStreamRows({ stream, encode, packedLength, fill: data.pack_sample_into_one ?? false, token });
  };
  openAt();

  const state = (): DataPosition => {
    const { stream: place, token } = rows.place();
    return {
      global_position: position,
      batch_count: batchCount,
      epoch: place.epoch,
      num_consumed_samples_in_epoch: consumedInEpoch / world,
      num_consumed_tokens: consumedTokens,
      data_world_size: world,
      batch_size: batchSize,
      raw_rampup_batch_size: data.rampup_batch_size ?? "",
      seed,
      dataset_rows: 0,
      cursor: { ...place, token, ...identity },
    };
  };

  return {
    datasetTypes: ["en"],
    rows: 0,
    packedLength,
    batchesPerEpoch: 0,
    async next(): Promise<Batch> {
      const globalRows = rowsOfBatch(ramp, batchSize, batchCount) * world;
      const skipped = isSkipped(spans, batchCount), microBatches: MicroBatch[] = [];
      let mine = 0;
      for (let i = 0; i < globalRows; i++) {
        const epoch = stream.place().epoch;
        const row = await rows.next();
        if (stream.place().epoch !== epoch) consumedInEpoch = 0;
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
        epoch: stream.place().epoch,
        skipped,
        after: state(),
      };
    },
    state,
    load(from, { elastic = false } = {}) {
      if (from.data_world_size !== shard.dataWorldSize && !elastic) {
        throw new RangeError(
          `The position was taken with ${from.data_world_size} data-parallel ranks, and there are ` +
            `${shard.dataWorldSize}. The same number, or an elastic run, would work`,
        );
      }
      const { cursor } = from;
      if (!cursor) {
        throw new RangeError(
          "The saved position is one of tokenized data, and this run streams. The same data, or a run from the " +
            "beginning, would work",
        );
      }
      const misfit = (what: string) =>
        new RangeError(
          `The saved position does not fit this run's data: ${what}. The same data and settings, or a run from the ` +
            `beginning, would work`,
        );
      if (cursor.files !== identity.files) throw misfit(`the files of ${folder}, or their sizes, are others now`);
      if (cursor.text !== identity.text) throw misfit("the tokenizer or data.content_name is another now");
      const here = state();
      for (const name of ["seed", "raw_rampup_batch_size"] as const) {
        if (from[name] !== here[name]) {
          throw misfit(`${name} was ${JSON.stringify(from[name])} and is ${JSON.stringify(here[name])}`);
        }
      }
      const { token, files: _files, text: _text, ...place } = cursor;
      openAt(place, token);
      world = from.data_world_size;
      batchCount = from.batch_count;
      position = from.global_position;
      consumedInEpoch = Math.round(from.num_consumed_samples_in_epoch * world);
      consumedTokens = from.num_consumed_tokens;
    },
    close: () => void stream.close(),
  };
}
