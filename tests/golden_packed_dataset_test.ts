/** Files, packing, folders and collation of `internevo/packed_dataset.json`, over the files of `internevo/packed_dataset/`. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { join, relative } from "node:path";
import { goldenPath, readGoldenJson } from "./golden_dir.ts";
import { ignoreIndex, type MicroBatch, toMicroBatch } from "../src/data/batch.ts";
import { datasetTypes, typeIdOfPath } from "../src/data/folder.ts";
import {
  type PackedRow,
  packIntoOne,
  packWithCut,
  type RowDataset,
  splitUnpacked,
  unpackedRows,
} from "../src/data/packed_dataset.ts";
import { closeTokenFiles, openTokenFile } from "../src/data/token_file.ts";
import { createTrainLoader, openTrainFolder } from "../src/data/train_loader.ts";
import { collateValidation, openValidationSets } from "../src/data/validation_loader.ts";

interface RowRecord {
  tokens: number[];
  cu_seqlens: number[];
  indexes: number[];
  labels: number[];
  type_ids: number[];
}
interface CollatedRecord {
  input_ids: number[][];
  cu_seqlens: number[][];
  indexes: number[][];
  type_ids: number[][];
  labels: number[][];
}
interface FolderArgs {
  max_length_per_sample: number;
  packed_length: number;
  min_length?: number;
  min_length_dict?: Record<string, number>;
  pack_sample_into_one?: boolean;
}
interface Golden {
  folder: {
    args: FolderArgs;
    error?: string;
    result?: {
      len: number;
      datasets: { file: string; len: number; type_id: number }[];
      cumulative_sizes: number[];
      items_at: Record<string, RowRecord>;
    };
  }[];
  files: Record<string, { num_samples: number; lengths: number[]; meta: number[][]; meta_dtype: string }>;
  jsonl_dataset: {
    file: string;
    dataset_type_id: number;
    min_length?: number;
    len?: number;
    offsets?: number[];
    lengths?: number[];
    old_length?: number | null;
    items?: { tokens: number[]; length: number }[];
    error?: string;
  }[];
  type_ids_map: Record<string, number>;
  type_id_of_path: { path: string; map: Record<string, number>; result?: number; error?: string }[];
  packed: {
    class: string;
    file: string;
    max_length_per_sample: number;
    packed_length: number;
    dataset_type_id: number;
    len: number;
    num_tokens: number;
    order: number[];
    items: { result: RowRecord }[];
    collated?: { result: CollatedRecord };
  }[];
  packed_into_one_bad_length: { max_length_per_sample: number; packed_length: number };
  unpacked_mode: {
    file: string;
    max_length_per_sample: number;
    micro_bsz: number;
    packed_length: number;
    len: number;
    items: { result?: RowRecord }[];
    collated: CollatedRecord;
    unpack_data: {
      type_ids_all: { result: number[][][] };
      input_ids_first: { result: number[][] };
      labels_first: { result: number[][] };
    };
  }[];
  train_batches: {
    pack_sample_into_one: boolean;
    seq_len: number;
    micro_bsz: number;
    micro_num: number;
    min_length: number;
    seed: number;
    data_rank: number;
    data_world_size: number;
    first_batches: (CollatedRecord & { indices: number[] })[];
  }[];
  valid_get_dataset_dict: {
    split: string;
    datasets: Record<string, { len: number; order: string[]; lengths: number[][] }>;
  }[];
  jsonl_ds_collate_fn: {
    file: string;
    max_length_per_sample: number;
    items: number[];
    result: { input_ids: number[][]; labels: number[][] };
  }[];
  packed_collate_fn: { batch: RowRecord[]; packed_length: number; result?: CollatedRecord; error?: string }[];
}

const golden = readGoldenJson<Golden>("internevo", "packed_dataset.json");
const folder = goldenPath("internevo", "packed_dataset");

const plainRow = (row: PackedRow): RowRecord => ({
  tokens: [...row.tokens],
  cu_seqlens: row.cuSeqlens,
  indexes: [...row.indexes],
  labels: [...row.labels],
  type_ids: [...row.typeIds],
});

const recordedRow = ({ tokens, cu_seqlens, indexes, labels, type_ids }: RowRecord): RowRecord => ({
  tokens,
  cu_seqlens,
  indexes,
  labels,
  type_ids,
});

/** Segment boundaries without empty segments, which say nothing. */
const boundaries = (cuSeqlens: number[]) => [...new Set(cuSeqlens)];

function assertMicroBatch(actual: MicroBatch, expected: CollatedRecord, row: number): void {
  assertEquals([...actual.inputIds], expected.input_ids[row]);
  assertEquals([...actual.labels], expected.labels[row]);
  assertEquals([...actual.positions], expected.indexes[row]);
  assertEquals([...actual.typeIds], expected.type_ids[row]);
  const ends = boundaries(expected.cu_seqlens[row]);
  const segments = ends.slice(1).map((end, i) => [ends[i], end]);
  assertEquals(actual.segments, segments.length);
  assertEquals(actual.longestSegment, Math.max(...segments.map(([start, end]) => end - start)));
  assertEquals([...actual.segmentStart], segments.flatMap(([start, end]) => Array(end - start).fill(start)));
  assertEquals([...actual.segmentEnd], segments.flatMap(([start, end]) => Array(end - start).fill(end)));
}

Deno.test.afterEach(closeTokenFiles);

Deno.test("openTokenFile() reads the reference's offset tables", () => {
  for (const [file, { num_samples, lengths, meta }] of Object.entries(golden.files)) {
    const source = openTokenFile(join(folder, file));
    assertEquals(source.lengths.length, num_samples);
    assertEquals([...source.lengths], lengths);
    assertEquals([...source.lengths].map((length, i) => [source.place(i).start, length]), meta);
    lengths.forEach((length, i) => assertEquals(source.read(i).length, length));
  }
});

Deno.test("openTokenFile() keeps the samples that are long enough", () => {
  for (const record of golden.jsonl_dataset) {
    const open = () => openTokenFile(join(folder, record.file), { minLength: record.min_length ?? 0 });
    if (record.error) {
      const error = assertThrows(open, Deno.errors.NotFound);
      assert(error.message.includes(record.file + ".meta"));
      continue;
    }
    const source = open();
    assertEquals(source.lengths.length, record.len);
    assertEquals([...source.lengths].map((_, i) => source.place(i).start), record.offsets);
    assertEquals([...source.lengths], record.lengths);
    if (typeof record.old_length === "number") assertEquals(source.samplesInFile, record.old_length);
    record.items!.forEach(({ tokens }, i) => assertEquals([...source.read(i)], tokens));
  }
});

Deno.test("typeIdOfPath() finds the reference's type", () => {
  assertEquals(Object.fromEntries(datasetTypes(join(folder, "train"))), golden.type_ids_map);
  for (const { path, map, result, error } of golden.type_id_of_path) {
    const find = () => typeIdOfPath(path, new Map(Object.entries(map)));
    if (error) assertThrows(find, RangeError);
    else assertEquals(find(), result);
  }
});

Deno.test("packWithCut() and packIntoOne() make the reference rows", () => {
  for (const record of golden.packed) {
    const source = openTokenFile(join(folder, record.file));
    assertEquals(source.totalTokens, record.num_tokens);
    const pack = record.class === "PackedDatasetWithCut" ? packWithCut : packIntoOne;
    const rows = pack(source, {
      seqLen: record.max_length_per_sample,
      packedLength: record.packed_length,
      typeId: record.dataset_type_id,
    });
    assertEquals(rows.length, record.len);
    record.items.forEach(({ result }, i) => assertEquals(plainRow(rows.row(i)), recordedRow(result)));
    const collated = record.collated?.result;
    collated?.input_ids.forEach((_, i) => assertMicroBatch(toMicroBatch(rows.row(i)), collated, i));
    // Rows may be asked for in any order.
    for (let i = rows.length - 1; i >= 0; i--) assertEquals([...rows.row(i).tokens], record.items[i].result.tokens);
  }
  const bad = golden.packed_into_one_bad_length;
  const source = openTokenFile(join(folder, Object.keys(golden.files)[0]));
  assertThrows(
    () => packIntoOne(source, { seqLen: bad.max_length_per_sample, packedLength: bad.packed_length }),
    RangeError,
    "multiple of seq_len",
  );
});

Deno.test("unpackedRows() makes the reference rows", () => {
  for (const record of golden.unpacked_mode) {
    const { file, max_length_per_sample: seqLen, packed_length: packedLength, micro_bsz: microBsz } = record;
    const typeId = Math.max(...record.items.flatMap(({ result }) => result?.type_ids ?? [0]));
    const rows: RowDataset = unpackedRows(openTokenFile(join(folder, file)), {
      seqLen,
      packedLength,
      microBsz,
      typeId,
    });
    // The reference counts rows by tokens, and may count past the last sample: rows of nothing, which Troupe leaves out.
    const filled = record.items.filter(({ result }) => result?.labels.some((label) => label !== 0));
    assert(rows.length <= record.len && rows.length === filled.length, `${file}: ${rows.length} of ${record.len} rows`);
    for (let i = 0; i < rows.length; i++) {
      const expected = recordedRow(record.items[i].result!);
      assertEquals(plainRow(rows.row(i)), { ...expected, cu_seqlens: boundaries(expected.cu_seqlens) });
    }
    record.collated.input_ids.forEach((_, i) => {
      if (i < rows.length) assertMicroBatch(toMicroBatch(rows.row(i)), record.collated, i);
    });

    record.unpack_data.type_ids_all.result.forEach((types, i) => {
      if (i < rows.length) assertEquals([...splitUnpacked(rows.row(i), microBsz, seqLen).typeIds], types.flat());
    });
    const split = toMicroBatch(splitUnpacked(rows.row(0), microBsz, seqLen));
    assertEquals([...split.inputIds], record.unpack_data.input_ids_first.result.flat());
    // The reference pads these labels with 0, which would train towards id 0; no label of Troupe's is below 1 but −100.
    const labels = record.unpack_data.labels_first.result.flat();
    assertEquals([...split.labels], labels.map((label) => label > 0 ? label : ignoreIndex));
    assertEquals([...split.positions], Array.from({ length: microBsz * seqLen }, (_, i) => i % seqLen));
    assertEquals([split.segments, split.longestSegment], [microBsz, seqLen]);
  }
});

/** Data options for a recorded folder, its files in the order in which the reference met them. */
function folderOptions(args: FolderArgs, files?: string[]) {
  return {
    train_folder: join(folder, "train"),
    seq_len: args.max_length_per_sample,
    micro_bsz: args.packed_length / args.max_length_per_sample,
    min_length: args.min_length ?? 0,
    min_length_dict: args.min_length_dict ?? null,
    pack_sample_into_one: args.pack_sample_into_one ?? false,
    ...(files && { files }),
  };
}

/** Order in which the reference's file system listed the training files: not sorted by folder. */
const recordedOrder = (() => {
  const lists = golden.folder.flatMap(({ result }) => result ? [result.datasets.map(({ file }) => file)] : []);
  return lists.sort((a, b) => b.length - a.length)[0].map((file) => relative("train", file));
})();

Deno.test("openTrainFolder() has the reference rows", () => {
  for (const { args, result, error } of golden.folder) {
    if (error) {
      assertThrows(() => openTrainFolder(folderOptions(args)), RangeError);
      continue;
    }
    const { rows } = openTrainFolder(folderOptions(args, recordedOrder));
    const files = (list: readonly RowDataset[]) =>
      list.map(({ path, length, typeId }) => ({ file: relative(folder, path), len: length, type_id: typeId }));
    assertEquals(files(rows.datasets), result!.datasets);
    assertEquals(rows.length, result!.len);
    assertEquals([...rows.cumulativeLengths], result!.cumulative_sizes);
    for (const [index, expected] of Object.entries(result!.items_at)) {
      assertEquals(plainRow(rows.row(Number(index))), recordedRow(expected));
    }

    // Troupe's own order is that of the names; the files and their rows are the same.
    const byName = (list: ReturnType<typeof files>) => list.sort((a, b) => a.file < b.file ? -1 : 1);
    assertEquals(byName(files(openTrainFolder(folderOptions(args)).rows.datasets)), byName([...result!.datasets]));
  }
});

Deno.test("createTrainLoader() gives the reference batches", async () => {
  for (const record of golden.train_batches) {
    const { first_batches, data_rank, data_world_size, ...data } = record;
    const loader = createTrainLoader(
      { ...data, train_folder: join(folder, "train"), files: recordedOrder },
      { dataRank: data_rank, dataWorldSize: data_world_size },
    );
    for (const expected of first_batches) {
      const batch = await loader.next();
      assertEquals(batch.rows, expected.indices.length);
      batch.microBatches.forEach((microBatch, i) => assertMicroBatch(microBatch, expected, i));
    }
    loader.close();
  }
});

Deno.test("openValidationSets() has the reference samples", () => {
  for (const { split, datasets } of golden.valid_get_dataset_dict) {
    const sets = openValidationSets(join(folder, "valid"), split);
    assertEquals(sets.map(({ name }) => name).sort(), Object.keys(datasets).sort());
    for (const { name, samples, sources } of sets) {
      assertEquals(samples, datasets[name].len);
      assertEquals(sources.map(({ path }) => path.split("/").at(-1)), datasets[name].order);
      assertEquals(sources.map(({ lengths }) => Array.from(lengths)), datasets[name].lengths);
    }
  }
});

Deno.test("collateValidation() builds the reference batches", () => {
  for (const { file, max_length_per_sample: seqLen, items, result } of golden.jsonl_ds_collate_fn) {
    const source = openTokenFile(join(folder, file));
    const batch = toMicroBatch(collateValidation(items.map((item) => source.read(item).slice()), seqLen));
    assertEquals([...batch.inputIds], result.input_ids.flat());
    assertEquals([...batch.labels], result.labels.flat());
  }
});

Deno.test("toMicroBatch() builds the reference batches", () => {
  for (const { batch, packed_length, result, error } of golden.packed_collate_fn) {
    if (error) {
      // Rows of another length than packed_length cannot arise: rows are made by the data set that knows it.
      assert(batch.some(({ tokens }) => tokens.length !== packed_length));
      continue;
    }
    batch.forEach((row, i) => {
      const microBatch = toMicroBatch({
        tokens: Int32Array.from(row.tokens),
        labels: Int32Array.from(row.labels),
        indexes: Uint32Array.from(row.indexes),
        typeIds: Uint32Array.from(row.type_ids),
        cuSeqlens: row.cu_seqlens,
      });
      assertMicroBatch(microBatch, result!, i);
    });
  }
});
