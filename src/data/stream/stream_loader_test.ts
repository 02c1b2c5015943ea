import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "node:path";
import type { Batch } from "../batch.ts";
import { loadTokenizer } from "../tokenizer.ts";
import { createTrainLoader, type DataShard, type TrainDataOptions, type TrainLoader } from "../train_loader.ts";
import { inScratch, jsonLines, writeFiles } from "./_testing.ts";
import { createStreamLoader } from "./stream_loader.ts";

const tokenizerPath = new URL("../../../configs/demo/tokenizer.json", import.meta.url).pathname;
const alone: DataShard = { dataRank: 0, dataWorldSize: 1 };

/** 60 numbered documents of about 10 to 40 tokens, none of them cut. */
const texts = Array.from({ length: 60 }, (_, i) => `<${i}>${" the sea".repeat(3 + i * 7 % 11)}`);

function dataIn(folder: string, more: Partial<TrainDataOptions> = {}): TrainDataOptions {
  writeFiles(folder, {
    "set/sub/a.jsonl": jsonLines(texts.slice(0, 20)),
    "set/sub/b.jsonl.gz": jsonLines(texts.slice(20, 35)),
    "set/sub/c.txt": texts.slice(35).join("\n\n"),
  });
  return {
    type: "streaming",
    train_folder: join(folder, "set"),
    tokenizer_path: tokenizerPath,
    subset_name: "sub",
    seq_len: 64,
    micro_bsz: 2,
    micro_num: 2,
    ...more,
  };
}

const take = async (loader: TrainLoader, count: number): Promise<Batch[]> => {
  const batches: Batch[] = [];
  for (let i = 0; i < count; i++) batches.push(await loader.next());
  return batches;
};

const settings = { blockDocuments: 7 };

Deno.test("createTrainLoader() streams: every document once an epoch, begun and ended as troupe tokenize does", () =>
  inScratch(async (folder) => {
    const tokenizer = loadTokenizer(tokenizerPath);
    for (const pack_sample_into_one of [false, true]) {
      const loader = createTrainLoader(dataIn(folder, { pack_sample_into_one, micro_num: 1 }), alone);
      let text = "", padding = 0;
      const counts = new Map<string, number>();
      while (loader.state().epoch < 2) {
        const { microBatches: [row] } = await loader.next();
        for (const id of row!.inputIds) {
          if (id === 0) padding++;
          else if (id === tokenizer.bosId) text = "";
          else if (id === tokenizer.eosId) counts.set(text, (counts.get(text) ?? 0) + 1);
          else text += tokenizer.tokenOf(id)!.replaceAll("Ġ", " ");
        }
        assertEquals(row!.positions[0], 0);
        assert(row!.longestSegment <= 128);
      }
      assertEquals([...counts.keys()].sort(), texts.toSorted());
      // The row that begins epoch 2 holds documents of it.
      for (const [document, count] of counts) assert(count === 2 || count === 3, `${document}: ${count} times`);
      assertEquals([...counts.values()].filter((count) => count === 3).length < 20, true);
      assertEquals(padding > 0, !pack_sample_into_one);
      loader.close();
    }
  }));

Deno.test("createTrainLoader() goes on in a stream from any batch as if never stopped", () =>
  inScratch(async (folder) => {
    for (const pack_sample_into_one of [false, true]) {
      const options = dataIn(folder, { pack_sample_into_one, rampup_batch_size: "1 1 2", skip_batches: "3,5-6" });
      const shard = { dataRank: 1, dataWorldSize: 2 };
      const whole = createStreamLoader(options, shard, settings), count = 14;
      const begin = whole.state(), batches = await take(whole, count);
      assert(batches.at(-1)!.epoch >= 1, "no epoch ended");
      assertEquals(batches.filter(({ skipped }) => skipped).map(({ batchCount }) => batchCount), [3, 5, 6]);
      assertEquals(batches.map(({ rows }) => rows), batches.map((_, i) => i < 2 ? 1 : 2));
      for (let stop = 0; stop < count; stop++) {
        const position = JSON.parse(JSON.stringify(stop === 0 ? begin : batches[stop - 1]!.after));
        assert(JSON.stringify(position).length < 2000);
        const resumed = createStreamLoader(options, shard, settings);
        resumed.load(position);
        assertEquals(resumed.state(), position);
        assertEquals(await take(resumed, count - stop), batches.slice(stop));
        resumed.close();
      }
      whole.close();
    }
  }));

Deno.test("createTrainLoader() deals a stream's rows to another number of ranks", () =>
  inScratch(async (folder) => {
    const options = dataIn(folder),
      tokensOf = (batches: Batch[]) =>
        batches.flatMap(({ microBatches }) => microBatches.map(({ inputIds }) => inputIds.join()));
    const open = (world: number, referenceWorldSize = world) =>
      Array.from(
        { length: world },
        (_, dataRank) => createStreamLoader(options, { dataRank, dataWorldSize: world, referenceWorldSize }, settings),
      );
    const four = open(4);
    const before = await Promise.all(four.map((loader) => take(loader, 2)));
    const expected = await Promise.all(four.map((loader) => take(loader, 2)));
    assertEquals(new Set(tokensOf(expected.flat())).size, 16); // no two ranks have the same row
    const two = open(2, 4), { after } = before[0]![1]!;
    for (const loader of two) loader.load(after);
    const dealt = await Promise.all(two.map((loader) => take(loader, 2)));
    for (const step of [0, 1]) {
      const of = (all: Batch[][]) => tokensOf(all.map((batches) => batches[step]!)).sort();
      assertEquals(of(dealt), of(expected));
    }
    assertEquals(dealt[0]![1]!.after, expected[0]![1]!.after);
    for (const loader of [...four, ...two]) loader.close();
  }));

Deno.test("createTrainLoader() refuses streams and positions that cannot be, each with a sentence", () =>
  inScratch(async (folder) => {
    const options = dataIn(folder),
      refuses = (more: Partial<TrainDataOptions>, what: string) =>
        assertThrows(() => createTrainLoader({ ...options, ...more }, alone), Error, what);
    refuses({ tokenizer_path: null }, "data.tokenizer_path is missing");
    refuses({ train_folder: null }, "data.train_folder is missing");
    refuses({ use_packed_dataset: false }, "data.use_packed_dataset false");
    refuses({ subset_name: "nowhere" }, "nowhere is missing");
    refuses({ tokenizer_path: join(folder, "none.json") }, "none.json is missing");
    refuses({ rampup_batch_size: "3 1 1" }, "above data.micro_num (2)");

    const loader = createTrainLoader(options, alone), { after } = await loader.next();
    const misfits = (more: Partial<TrainDataOptions>, what: string) =>
      assertThrows(() => createTrainLoader({ ...options, ...more }, alone).load(after), RangeError, what);
    misfits({ seed: 7 }, "seed was 1024 and is 7");
    misfits({ content_name: "body" }, "the tokenizer or data.content_name is another");
    misfits({ type: "tokenized", train_folder: null }, "is one of streaming data");
    const tokenized = createTrainLoader({ seq_len: 16, micro_bsz: 1 }, alone);
    assertThrows(() => loader.load(tokenized.state()), RangeError, "is one of tokenized data");
    loader.close();
    writeFiles(folder, { "set/sub/d.txt": "more" });
    misfits({}, "the files of");

    const none = createTrainLoader({ ...options, min_length: 1000 }, alone);
    await assertRejects(() => none.next(), RangeError, "all are empty or too short");
    none.close();
  }));

Deno.test("createTrainLoader() keeps a stream's documents of min_length tokens, cut to seq_len", () =>
  inScratch(async (folder) => {
    const tokenizer = loadTokenizer(tokenizerPath);
    const lengths = texts.map((text) => tokenizer.encode(text).length + 2);
    const least = lengths.toSorted((a, b) => a - b)[30]!;
    const loader = createTrainLoader(dataIn(folder, { seq_len: 20, micro_num: 1, min_length: least }), alone);
    const begins: number[] = [];
    for (let batch; (batch = await loader.next()).epoch === 0;) {
      const { inputIds, segmentEnd } = batch.microBatches[0]!;
      for (let at = 0; at < inputIds.length; at = segmentEnd[at]!) {
        if (inputIds[at] === tokenizer.bosId) begins.push(segmentEnd[at]! - at);
      }
    }
    const kept = lengths.filter((length) => length >= least).map((length) => Math.min(20, length));
    assertEquals(begins.sort(), kept.sort());
    assertNotEquals(begins.length, texts.length);
    loader.close();
  }));
