import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { RandomState } from "./mt19937.ts";
import { inScratch, jsonLines, parquetFixture, takeEpoch, writeFiles } from "./stream/_testing.ts";
import { openDocumentStream } from "./stream/document_stream.ts";
import { openParquetReader } from "./stream/parquet_reader.ts";
import { readRange } from "./stream/read_range.ts";
import { listRowFiles } from "./stream/row_file.ts";
import { loadTokenizer } from "./tokenizer.ts";

/** How many damaged files of each kind; `TROUPE_FUZZ=500` is the long form. */
const seeds = Number(Deno.env.get("TROUPE_FUZZ") ?? 40);

/** Changes, cuts, doubles or removes bytes in one to four places. */
function mutate(bytes: Uint8Array, random: RandomState): Uint8Array {
  let changed = Array.from(bytes);
  for (let n = 1 + random.randomInterval(3); n > 0 && changed.length > 0; n--) {
    const at = random.randomInterval(changed.length - 1), length = 1 + random.randomInterval(15);
    switch (random.randomInterval(5)) {
      case 0:
        changed[at]! ^= 1 << random.randomInterval(7);
        break;
      case 1:
        changed[at] = random.randomInterval(1) * 255;
        break;
      case 2:
        changed.splice(at, length);
        break;
      case 3:
        changed.splice(at, 0, ...changed.slice(at, at + length));
        break;
      case 4:
        changed = changed.slice(0, random.randomInterval(3) === 0 ? at : changed.length);
        break;
      default:
        changed.splice(at, 1, random.randomInterval(255));
    }
  }
  return Uint8Array.from(changed);
}

/** An error that people can do something with: one sentence that names the file. */
function assertClear(error: unknown, path: string, seed: number): void {
  assert(error instanceof Error && error.message.includes(path), `seed ${seed}: ${(error as Error).stack}`);
}

const lines = jsonLines(Array.from({ length: 30 }, (_, i) => `Row ${i} ñ ${"x".repeat(i)}`));
const sources: Readonly<Record<string, () => Uint8Array | string>> = {
  "a.jsonl": () => lines,
  "a.jsonl.gz": () => lines,
  "a.jsonl.zst": () => lines,
  "a.txt": () => lines.replaceAll("\n", "\n\n"),
  "zstd.parquet": () => parquetFixture("zstd"),
  "snappy.parquet": () => parquetFixture("snappy"),
  "gzip.parquet": () => parquetFixture("gzip"),
};

for (const [name, source] of Object.entries(sources)) {
  Deno.test(`openDocumentStream() goes on or gives up with a sentence where ${name} is damaged`, () =>
    inScratch(async (folder) => {
      const path = `${folder}/${name}`;
      writeFiles(folder, { [name]: source() });
      const whole = Deno.readFileSync(path);
      let refused = 0;
      const parquet = openParquetReader({ limitMs: 1000, maxHeapMb: 256 });
      for (let seed = 0; seed < seeds; seed++) {
        Deno.writeFileSync(path, mutate(whole, new RandomState(seed)));
        if (Deno.statSync(path).size === 0) continue;
        const content = name.endsWith("parquet") ? "content" : "text";
        const stream = openDocumentStream({ files: listRowFiles(folder), content, read: readRange, parquet });
        try {
          await takeEpoch(stream, 1000);
        } catch (error) {
          refused++;
          assertClear(error, path, seed);
        }
        await stream.close();
      }
      await parquet.close();
      // Plain lines lose rows at most; what is compressed mostly does not survive.
      assert(
        name.includes("parquet") || name.endsWith("gz") || name.endsWith("zst") ? refused > seeds / 16 : refused === 0,
      );
    }));
}

for (const name of ["bpe.model", "unigram.model", "small.tiktoken", "tokenizer.json"]) {
  Deno.test(`loadTokenizer() loads or refuses with a sentence where ${name} is damaged`, () =>
    inScratch((folder) => {
      const path = `${folder}/${name}`, random = new RandomState(11);
      const small = JSON.stringify({
        added_tokens: [{ id: 0, content: "<s>", special: true }],
        normalizer: null,
        pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, use_regex: true },
        post_processor: null,
        decoder: { type: "ByteLevel" },
        model: { type: "BPE", vocab: { "<s>": 0, a: 1, b: 2, ab: 3, abb: 4 }, merges: ["a b", "ab b"] },
      });
      const whole = name.endsWith("json")
        ? new TextEncoder().encode(small)
        : Deno.readFileSync(new URL(`./testdata/${name}`, import.meta.url));
      let refused = 0;
      for (let seed = 0; seed < seeds; seed++) {
        Deno.writeFileSync(path, mutate(whole, random));
        try {
          const tokenizer = loadTokenizer(path);
          for (const text of ["abb a", "Hello  world ñ 日本"]) tokenizer.decode(tokenizer.encode(text));
        } catch (error) {
          refused++;
          assertClear(error, path, seed);
        }
      }
      assert(refused > seeds / 16);
    }));
}

Deno.test("openDocumentStream() gives up a page of Parquet that its decoder comes to no end with, and reads on", () =>
  inScratch(async (folder) => {
    const whole = parquetFixture("snappy"), path = `${folder}/a.parquet`;
    const parquet = openParquetReader({ limitMs: 700 });
    const read = async () => {
      const stream = openDocumentStream({ files: listRowFiles(folder), content: "content", read: readRange, parquet });
      try {
        return await takeEpoch(stream, 1000);
      } finally {
        await stream.close();
      }
    };
    // Damage that was found to send the decoder round and round: a page whose size leads back to itself.
    Deno.writeFileSync(path, mutate(whole, new RandomState(163)));
    assertStringIncludes(
      (await assertRejects(read, SyntaxError)).message,
      `${path} is damaged or not Parquet (row group`,
    );
    assertStringIncludes((await assertRejects(read, SyntaxError)).message, "decoding it came to no end within 1 s");
    Deno.writeFileSync(path, whole);
    assertEquals((await read()).length, 24);
    await parquet.close();
  }));
