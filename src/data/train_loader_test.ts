import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "node:path";
import type { Batch } from "./batch.ts";
import { closeTokenFiles } from "./token_file.ts";
import { createTokenFile } from "./token_file_writer.ts";
import { createTrainLoader, type TrainDataOptions, type TrainLoader } from "./train_loader.ts";

const data: TrainDataOptions = { seq_len: 16, micro_bsz: 2, micro_num: 3, train_folder: null };

const take = async (loader: TrainLoader, count: number): Promise<Batch[]> => {
  const batches: Batch[] = [];
  for (let i = 0; i < count; i++) batches.push(await loader.next());
  return batches;
};

const tokensOf = (batches: Batch[]) =>
  batches.flatMap(({ microBatches }) => microBatches.map((m) => m.inputIds.join()));

Deno.test("createTrainLoader() goes on from any position, over the end of an epoch, as if never stopped", async () => {
  const shard = { dataRank: 1, dataWorldSize: 2 };
  const options = { ...data, rampup_batch_size: "1 1 3", skip_batches: "2,4-5" };
  const whole = createTrainLoader(options, shard);
  const count = whole.batchesPerEpoch + 4;
  const batches = await take(whole, count);
  assertEquals(batches.map(({ batchCount }) => batchCount), batches.map((_, i) => i));
  assertEquals(batches.filter(({ skipped }) => skipped).map(({ batchCount }) => batchCount), [2, 4, 5]);
  assertEquals([batches[0].epoch, batches.at(-1)!.epoch], [0, 1]);
  for (const stop of [1, 4, 7, count - 5, count - 3]) {
    const position = JSON.parse(JSON.stringify(batches[stop - 1].after));
    const resumed = createTrainLoader(options, shard);
    resumed.load(position);
    assertEquals(resumed.state(), position);
    assertEquals(await take(resumed, count - stop), batches.slice(stop));
  }
});

Deno.test("createTrainLoader() counts rows and tokens of all ranks", async () => {
  const loader = createTrainLoader(
    { ...data, rampup_batch_size: "1 1 2", skip_batches: "1" },
    { dataRank: 0, dataWorldSize: 4 },
  );
  const batches = await take(loader, 5);
  assertEquals(batches.map(({ rows }) => rows), [1, 1, 2, 2, 3]);
  assertEquals(batches.map(({ globalRows }) => globalRows), [4, 4, 8, 8, 12]);
  assertEquals(batches.map(({ after }) => after.global_position), [4, 8, 16, 24, 36]);
  assertEquals(batches.at(-1)!.after.num_consumed_tokens, (4 + 8 + 8 + 12) * 32);
  assertEquals(batches.at(-1)!.after.num_consumed_samples_in_epoch, 9);
  assertEquals(batches[1].microBatches, []);
});

Deno.test("createTrainLoader() deals the same tokens to another number of ranks, whichever way the record states the batch", async () => {
  const ramp = { ...data, micro_num: 6, rampup_batch_size: "2 2 1" };
  for (const options of [data, { ...data, micro_num: 6 }, ramp]) {
    const two = [0, 1].map((dataRank) => createTrainLoader(options, { dataRank, dataWorldSize: 2 }));
    const before = await Promise.all(two.map((loader) => take(loader, 2)));
    const position = before[0][1].after;
    const expected = await Promise.all(two.map((loader) => take(loader, 4)));
    const own = options.micro_num!;
    for (const [world, micro_num] of [[1, own], [3, own], [4, own], [1, 2 * own]] as const) {
      const loaders = Array.from(
        { length: world },
        (_, dataRank) => createTrainLoader({ ...options, micro_num }, { dataRank, dataWorldSize: world }),
      );
      for (const loader of loaders) loader.load(position);
      for (let step = 0; step < 4; step++) {
        const dealt = await Promise.all(loaders.map((loader) => loader.next()));
        assertEquals(tokensOf(dealt).sort(), tokensOf(expected.map((batches) => batches[step])).sort());
        for (const { after } of dealt) assertEquals(after, expected[0][step].after);
      }
    }
  }
});

Deno.test("createTrainLoader() refuses a micro_num of which nobody could tell which batch it means on other ranks", async () => {
  const [{ after }] = await take(createTrainLoader(data, { dataRank: 0, dataWorldSize: 2 }), 1);
  const load = (micro_num: number, dataWorldSize: number) =>
    createTrainLoader({ ...data, micro_num }, { dataRank: 0, dataWorldSize }).load(after);
  load(5, 2); // on as many ranks, another batch is what is asked for
  assertThrows(
    () => load(5, 1),
    RangeError,
    "has 6 rows (data.micro_num: 3 on 2 data-parallel ranks), and data.micro_num: 5 on 1 makes 5. data.micro_num: 3 " +
      "would work: the same batches are dealt to the ranks there are, and so would 6; for another batch, resume once on 2",
  );
});

Deno.test("createTrainLoader() refuses positions of other data or settings", async () => {
  const shard = { dataRank: 0, dataWorldSize: 1 };
  const [{ after }] = await take(createTrainLoader(data, shard), 1);
  const refuses = (options: Partial<TrainDataOptions>, what: string) =>
    assertThrows(() => createTrainLoader({ ...data, ...options }, shard).load(after), RangeError, what);
  refuses({ seed: 1 }, "seed was 1024 and is 1");
  refuses({ rampup_batch_size: "1 1 1" }, "raw_rampup_batch_size");
  refuses({ micro_bsz: 1 }, "dataset_rows was 250 and is 500");
});

Deno.test("createTrainLoader() refuses what cannot make a batch, with the numbers", () => {
  const shard = { dataRank: 0, dataWorldSize: 1 };
  const refuses = (options: Partial<TrainDataOptions>, what: string) =>
    assertThrows(() => createTrainLoader({ ...data, ...options }, shard), Error, what);
  refuses({ micro_num: 1000 }, "one batch takes 1000");
  refuses({ seq_len: 0 }, "data.seq_len must be a positive integer");
  refuses({ rampup_batch_size: "4 1 1" }, "above data.micro_num (3)");
  refuses({ rampup_batch_size: "1 1" }, "three positive integers");
  refuses({ skip_batches: "3-1" }, "not ascending");
  refuses({ train_folder: "/nowhere" }, "data.train_folder /nowhere is not a folder");
  refuses({ type: "megatron" }, "tokenized would work");
});

Deno.test("createTrainLoader() lays unpacked samples out as rows, each one segment", async () => {
  const loader = createTrainLoader({ ...data, use_packed_dataset: false }, { dataRank: 0, dataWorldSize: 1 });
  const { microBatches } = await loader.next();
  for (const { segments, longestSegment, positions, segmentStart, segmentEnd, inputIds, labels } of microBatches) {
    assertEquals([segments, longestSegment], [2, 16]);
    for (let i = 0; i < 32; i++) {
      const row = i - i % 16;
      assertEquals([positions[i], segmentStart[i], segmentEnd[i]], [i % 16, row, row + 16]);
      if (i % 16 === 15) assertEquals(labels[i], -100);
      else assertEquals(labels[i], inputIds[i + 1] || -100);
    }
  }
});

Deno.test("createTrainLoader().next() rejects damaged samples with file and place", async () => {
  const folder = Deno.makeTempDirSync();
  try {
    const path = join(folder, "en", "a.bin");
    {
      using writer = createTokenFile(path);
      for (let i = 0; i < 40; i++) writer.write([1, 2, 3, 4, 5, 6, 7, 8]);
      writer.finish();
    }
    Deno.writeTextFileSync(path, Deno.readTextFileSync(path).replaceAll("7", "x"));
    const loader = createTrainLoader({ ...data, train_folder: folder }, { dataRank: 0, dataWorldSize: 1 });
    const error = await assertRejects(() => loader.next(), SyntaxError);
    assert(error.message.startsWith(`${path}: bad JSON at byte`), error.message);
  } finally {
    closeTokenFiles();
    Deno.removeSync(folder, { recursive: true });
  }
});
