/** The built-in data set of `internevo/dummy_dataset.json`. */
import { assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { readGoldenJson } from "./golden_dir.ts";
import { dummyDataset } from "../src/data/dummy_dataset.ts";
import { packIntoOne, packWithCut } from "../src/data/packed_dataset.ts";

interface Golden {
  cases: {
    num_samples: number;
    max_len: number;
    fixed_seqlen: boolean;
    len: number;
    lengths?: number[];
    n_and_r?: [number, number | null][];
    items: Record<string, { tokens: number[]; type_id: number }>;
    name: string;
  }[];
  packed: {
    class: string;
    num_samples: number;
    max_len: number;
    fixed_seqlen: boolean;
    packed_length: number;
    len: number;
    items: Record<
      string,
      { tokens: number[]; cu_seqlens: number[]; indexes: number[]; labels: number[]; type_ids: number[] }
    >;
  }[];
  large: {
    num_samples: number;
    max_len: number;
    fixed_seqlen: boolean;
    sum_lengths: number;
    sha256_of_all_tokens_i64le: string;
    first_n_r: number[][];
    last_n_r: number[][];
  }[];
}

const golden = readGoldenJson<Golden>("internevo", "dummy_dataset.json");

Deno.test("dummyDataset() has the reference samples", () => {
  for (const { num_samples, max_len, fixed_seqlen, len, lengths, n_and_r, items, name } of golden.cases) {
    const source = dummyDataset({ samples: num_samples, seqLen: max_len, fixedSeqLen: fixed_seqlen });
    assertEquals(source.path, name);
    assertEquals(source.lengths.length, len);
    if (lengths) assertEquals(Array.from(source.lengths), lengths);
    n_and_r?.forEach(([n, r], i) => {
      const sample = source.read(i);
      assertEquals([sample[0], sample.length > 1 ? sample[1] : null], [n, r]);
    });
    for (const [index, { tokens }] of Object.entries(items)) assertEquals([...source.read(Number(index))], tokens);
  }
});

Deno.test("dummyDataset() has the reference samples when there are many", () => {
  for (const record of golden.large) {
    const { num_samples, max_len, fixed_seqlen, sum_lengths, first_n_r, last_n_r } = record;
    const source = dummyDataset({ samples: num_samples, seqLen: max_len, fixedSeqLen: fixed_seqlen });
    const hash = createHash("sha256");
    let tokens = 0;
    for (let i = 0; i < num_samples; i++) {
      const sample = source.read(i);
      tokens += sample.length;
      hash.update(new Uint8Array(BigInt64Array.from(sample, BigInt).buffer));
    }
    assertEquals(tokens, sum_lengths);
    assertEquals(hash.digest("hex"), record.sha256_of_all_tokens_i64le);
    const heads = (first: number, count: number) =>
      Array.from({ length: count }, (_, i) => [...source.read(first + i).subarray(0, 2)]);
    assertEquals(heads(0, first_n_r.length), first_n_r);
    assertEquals(heads(num_samples - last_n_r.length, last_n_r.length), last_n_r);
  }
});

Deno.test("dummyDataset() packs into the reference rows", () => {
  for (const record of golden.packed) {
    const pack = record.class === "PackedDatasetWithCut" ? packWithCut : packIntoOne;
    const source = dummyDataset({
      samples: record.num_samples,
      seqLen: record.max_len,
      fixedSeqLen: record.fixed_seqlen,
    });
    const rows = pack(source, { seqLen: record.max_len, packedLength: record.packed_length });
    assertEquals(rows.length, record.len);
    for (const [index, expected] of Object.entries(record.items)) {
      const row = rows.row(Number(index));
      assertEquals([...row.tokens], expected.tokens);
      assertEquals([...row.labels], expected.labels);
      assertEquals([...row.indexes], expected.indexes);
      assertEquals(row.cuSeqlens, expected.cu_seqlens);
      assertEquals([...row.typeIds], expected.type_ids);
    }
  }
});
