/** The position of every kind of data is one number of rows, whatever the ranks: stop on four, go on with two. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { join } from "node:path";
import { RandomState } from "./mt19937.ts";
import { inScratch, jsonLines, writeFiles } from "./stream/_testing.ts";
import { createTokenFile } from "./token_file_writer.ts";
import { createTrainLoader, type TrainDataOptions, type TrainLoader } from "./train_loader.ts";

const tokenizer_path = new URL("../../configs/demo/tokenizer.json", import.meta.url).pathname;
const sizes = { seq_len: 16, micro_bsz: 2, micro_num: 3 };

/** Folders `cn`, `code` and `en`, tokenized and as text. */
function makeData(folder: string): { tokenized: string; text: string } {
  const random = new RandomState(9), tokenized = join(folder, "tokenized"), text = join(folder, "text");
  for (const [kind, name] of ["cn", "code", "en"].entries()) {
    for (const file of ["a.bin", "b.bin"]) {
      using writer = createTokenFile(join(tokenized, name, file));
      for (let i = 0; i < 150; i++) {
        const length = 3 + random.randomInterval(30);
        writer.write(Array.from({ length }, () => 1 + kind * 1000 + random.randomInterval(900)));
      }
      writer.finish();
    }
    const documents = Array.from(
      { length: 90 },
      (_, i) => `${name} ${i}${" says".repeat(1 + random.randomInterval(9))}`,
    );
    writeFiles(text, {
      [`${name}/a.jsonl`]: jsonLines(documents.slice(0, 50)),
      [`${name}/b.txt`]: documents.slice(50).join("\n\n"),
    });
  }
  return { tokenized, text };
}

const mixture = { en: 6, code: 3, cn: 1 };
const kinds: Readonly<Record<string, (data: ReturnType<typeof makeData>) => TrainDataOptions>> = {
  "packed with cut": ({ tokenized }) => ({ ...sizes, train_folder: tokenized }),
  "packed into one": ({ tokenized }) => ({ ...sizes, train_folder: tokenized, pack_sample_into_one: true }),
  unpacked: ({ tokenized }) => ({ ...sizes, train_folder: tokenized, use_packed_dataset: false }),
  "made up": () => ({ ...sizes, train_folder: null }),
  "growing batches": ({ tokenized }) => ({ ...sizes, train_folder: tokenized, rampup_batch_size: "1 1 2" }),
  "a mixture": ({ tokenized }) => ({ ...sizes, train_folder: tokenized, mixture }),
  "a stream": ({ text }) => ({ ...sizes, type: "streaming", tokenizer_path, train_folder: text }),
  "a filled stream": ({ text }) => ({
    ...sizes,
    type: "streaming",
    tokenizer_path,
    train_folder: text,
    pack_sample_into_one: true,
  }),
  "a mixture of streams": ({ text }) => ({ ...sizes, type: "streaming", tokenizer_path, train_folder: text, mixture }),
};

const open = (data: TrainDataOptions, world: number, referenceWorldSize = world): TrainLoader[] =>
  Array.from(
    { length: world },
    (_, dataRank) => createTrainLoader(data, { dataRank, dataWorldSize: world, referenceWorldSize }),
  );

/** The rows of a batch in the order of all ranks, as text: tokens, labels and kinds. */
async function nextRows(loaders: readonly TrainLoader[]) {
  const batches = await Promise.all(loaders.map((loader) => loader.next()));
  const { globalRows, after } = batches[0]!;
  for (const batch of batches) assertEquals(batch.after, after);
  const rows = Array.from({ length: globalRows }, (_, i) => {
    const row = batches[i % loaders.length]!.microBatches[Math.floor(i / loaders.length)]!;
    return `${row.inputIds} ${row.labels} ${row.segmentEnd} ${row.typeIds}`;
  });
  return { rows, after };
}

for (const [kind, options] of Object.entries(kinds)) {
  Deno.test(`createTrainLoader() stopped on four ranks goes on with two and with three, the same rows in the same order: ${kind}`, () =>
    inScratch(async (folder) => {
      const data = options(makeData(folder)), four = open(data, 4), batches = 14;
      const expected: Awaited<ReturnType<typeof nextRows>>[] = [];
      for (let i = 0; i < batches; i++) expected.push(await nextRows(four));
      assert(new Set(expected.flatMap(({ rows }) => rows)).size > 50);
      for (const [world, stop] of [[2, 3], [3, 9], [2, 11]] as const) {
        const position = JSON.parse(JSON.stringify(expected[stop - 1]!.after)), fewer = open(data, world, 4);
        for (const loader of fewer) loader.load(position);
        for (let i = stop; i < batches; i++) assertEquals(await nextRows(fewer), expected[i]);
        fewer.forEach((loader) => loader.close());
      }
      four.forEach((loader) => loader.close());
    }));
}

for (const type of ["tokenized", "streaming"] as const) {
  Deno.test(`createTrainLoader() mixes folders by their weights: ${type}`, () =>
    inScratch(async (folder) => {
      const { tokenized, text } = makeData(folder);
      const data: TrainDataOptions = {
        ...sizes,
        micro_num: 64,
        type,
        tokenizer_path,
        mixture,
        train_folder: type === "tokenized" ? tokenized : text,
      };
      const loader = createTrainLoader(data, { dataRank: 0, dataWorldSize: 1 });
      const counts: Record<string, number> = {}, seen = new Map<string, number>();
      for (let i = 0; i < 16; i++) {
        for (const { typeIds, inputIds } of (await loader.next()).microBatches) {
          const name = loader.datasetTypes[typeIds[0]!]!;
          assert(typeIds.every((id) => id === typeIds[0]));
          counts[name] = (counts[name] ?? 0) + 1;
          if (type === "tokenized") {
            const kind = ["cn", "code", "en"].indexOf(name);
            assert(inputIds.every((id) => id === 0 || Math.floor((id - 1) / 1000) === kind));
          }
          seen.set(`${inputIds}`, (seen.get(`${inputIds}`) ?? 0) + 1);
        }
      }
      assertEquals(counts.en! + counts.code! + counts.cn!, 1024);
      for (const [name, share] of [["en", 0.6], ["code", 0.3], ["cn", 0.1]] as const) {
        assert(Math.abs(counts[name]! - 1024 * share) <= 1, `${name}: ${counts[name]}`);
      }
      // Each folder is gone through evenly: none of its rows comes twice more often than another.
      if (type === "tokenized") {
        const ofKind = (kind: number) =>
          [...seen].filter(([ids]) => Math.floor((Number(ids.split(",")[0]) - 1) / 1000) === kind);
        for (const kind of [0, 1, 2]) {
          const times = ofKind(kind).map(([, count]) => count);
          assert(Math.max(...times) - Math.min(...times) <= 1, `${times}`);
        }
      }
      const again = createTrainLoader({ ...data, mixture: { en: 1, cn: 1 } }, { dataRank: 0, dataWorldSize: 1 });
      assertEquals(type === "streaming" ? again.datasetTypes : again.mixture!.map(({ name }) => name), ["cn", "en"]);
      assertThrows(() => again.load(loader.state()), RangeError, "mixture was");
      const fails = (mixture: Record<string, number>, what: string) =>
        assertThrows(
          () => createTrainLoader({ ...data, mixture }, { dataRank: 0, dataWorldSize: 1 }),
          RangeError,
          what,
        );
      fails({ fr: 1 }, 'names "fr", which is no folder of the data; cn, code, en are');
      fails({ en: 0 }, "no weight above 0");
      fails({ en: -1 }, "-1");
      loader.close();
      again.close();
    }));
}
