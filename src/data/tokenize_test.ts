import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "node:path";
import { byteAlphabet, createBpeTrainer } from "./bpe_training.ts";
import { listTextFiles, readDocuments } from "./documents.ts";
import { alpacaPrompt } from "./instructions.ts";
import { RandomState } from "./mt19937.ts";
import { jsonLines, parquetFixture, parquetTexts, writeFiles } from "./stream/_testing.ts";
import { closeTokenFiles, openTokenFile } from "./token_file.ts";
import { runTokenize, tokenizeFiles, trainTokenizer } from "./tokenize.ts";
import { loadTokenizer } from "./tokenizer.ts";

const story = `The old captain looked at the sea. The sea looked back at the captain.

"Don't!" said the mate; "the sea isn't kind." 1851 was a long year.

The captain's ship went down: naïve, 日本, 🙂 and all.  Two spaces.
And a second line.`;

async function inScratch(run: (folder: string) => Promise<void> | void): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    await run(folder);
  } finally {
    closeTokenFiles();
    Deno.removeSync(folder, { recursive: true });
  }
}

Deno.test("createBpeTrainer() merges the most frequent pair first", () => {
  const trainer = createBpeTrainer();
  trainer.add("aaab aaab cb");
  // Words: "aaab", " aaab", " cb" ("Ġ" is the space). Pairs: aa 4, ab 2, Ġa 1 …; then aa+a 2; then aaa+b 2.
  assertEquals(trainer.train(300).model.merges, ["a a", "a b", "aa ab"]);
  assertThrows(() => trainer.train(200), RangeError, "from 259 to");
});

Deno.test("createBpeTrainer() counts pairs as if counted anew after every merge", () => {
  const trainer = createBpeTrainer();
  // Words of few letters: runs that overlap themselves, and many ties.
  const random = new RandomState(3);
  const text = story + " " + Array.from({ length: 600 }, () => "aab "[random.randomInterval(3)]).join("");
  trainer.add(text);
  const { merges } = trainer.train(400).model;
  assert(merges.length > 40);
  const alphabet = byteAlphabet();
  const ids = new Map(alphabet.map((letter, byte) => [letter, byte]));
  const pattern = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
  const words = (text.match(pattern) ?? []).map((word) =>
    Array.from(new TextEncoder().encode(word), (byte) => alphabet[byte])
  );
  for (const merge of merges) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        const pair = `${word[i]} ${word[i + 1]}`;
        counts.set(pair, (counts.get(pair) ?? 0) + 1);
      }
    }
    const rank = (pair: string) => pair.split(" ").map((token) => ids.get(token)!);
    const [best] = [...counts].sort(([a, n], [b, m]) => {
      const [[a0, a1], [b0, b1]] = [rank(a), rank(b)];
      return m - n || a0 - b0 || a1 - b1;
    });
    assertEquals(merge, best[0]);
    const [left, right] = merge.split(" ");
    ids.set(left + right, ids.size);
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === left && word[i + 1] === right) word.splice(i, 2, left + right);
      }
    }
  }
});

Deno.test("runTokenize() trains a tokenizer and writes documents that decode to the text", () =>
  inScratch(async (folder) => {
    const text = join(folder, "story.txt");
    Deno.writeTextFileSync(text, story);
    const tokenizer = join(folder, "made/tokenizer.json");
    const options = { inputs: [text], tokenizer, outDir: join(folder, "data"), name: "story" };
    const stages: string[] = [];
    const { trainedEntries, summary } = await runTokenize(
      { ...options, trainBpe: 280 },
      { progress: ({ stage }) => stages.push(stage) },
    );
    assertEquals(trainedEntries, 280);
    assertEquals([...new Set(stages)], ["train tokenizer", "tokenize"]);
    const loaded = loadTokenizer(tokenizer);
    assertEquals([loaded.vocabSize, loaded.bosId, loaded.eosId, loaded.idOf("<unk>")], [280, 1, 2, 0]);

    const source = openTokenFile(join(folder, "data/train/en/story.bin"));
    const documents = story.split("\n\n");
    assertEquals(source.lengths.length, documents.length);
    documents.forEach((document, i) => {
      const ids = source.read(i).slice();
      assertEquals([ids[0], ids.at(-1)], [1, 2]);
      assertEquals(loaded.decode(ids), document);
      assert(ids.every((id) => id > 0));
    });
    assertEquals(summary!.train.documents, 3);
    assertEquals(summary!.train.tokens, source.totalTokens);
    assertEquals(summary!.train.lengthHistogram.reduce((sum, n) => sum + n, 0), 3);
    // Entropy by its definition, over the written tokens.
    const all = documents.flatMap((_, i) => [...source.read(i)]);
    const entropy = [...new Set(all)].reduce((sum, token) => {
      const share = all.filter((other) => other === token).length / all.length;
      return sum - share * Math.log(share);
    }, 0);
    assert(Math.abs(summary!.train.unigramEntropy - entropy) < 1e-9);

    await assertRejects(() => runTokenize(options), Deno.errors.AlreadyExists, "--overwrite");
    await assertRejects(() => runTokenize({ ...options, trainBpe: 280 }), Deno.errors.AlreadyExists, "tokenizer.json");
    await runTokenize({ ...options, overwrite: true, bos: false, eos: false });
    const bare = openTokenFile(join(folder, "data/train/en/story.bin"));
    assertEquals(bare.totalTokens, summary!.train.tokens - 6);
  }));

Deno.test("readDocuments() joins short paragraphs and cuts long documents, losing no word", () =>
  inScratch(async (folder) => {
    const path = join(folder, "a.txt");
    const paragraphs = Array.from({ length: 40 }, (_, i) => `Paragraph ${i} says so. `.repeat(1 + i % 7).trim());
    Deno.writeTextFileSync(path, paragraphs.join("\r\n \r\n") + "\r\n");
    const documents: string[] = [];
    for await (const { text } of readDocuments(listTextFiles([path]), { minChars: 150, maxChars: 200 })) {
      documents.push(text);
    }
    const flat = (texts: string[]) => texts.join(" ").replace(/\s+/g, " ");
    assertEquals(flat(documents), flat(paragraphs));
    for (const text of documents) assert(text.length >= 75 && text.length <= 300, `${text.length}`);

    const whole: string[] = [];
    for await (const { text } of readDocuments(listTextFiles([path]), { split: "file" })) whole.push(text);
    assertEquals(whole.length, 1);
  }));

Deno.test("tokenizeFiles() reads JSON lines and splits off validation documents", () =>
  inScratch(async (folder) => {
    const trainer = createBpeTrainer();
    trainer.add(story);
    const tokenizer = join(folder, "tokenizer.json");
    Deno.writeTextFileSync(tokenizer, JSON.stringify(trainer.train(300)));
    const path = join(folder, "in.jsonl");
    const texts = Array.from({ length: 200 }, (_, i) => `Document ${i}\n\nhas two paragraphs.`);
    Deno.writeTextFileSync(path, texts.map((body) => JSON.stringify({ body }) + "\n").join("\n"));
    const options = {
      inputs: [folder],
      tokenizer,
      outDir: join(folder, "out"),
      field: "body",
      validationFraction: 0.2,
    };
    const { train, valid } = await tokenizeFiles(options);
    assertEquals(train.documents + valid!.documents, 200);
    assert(valid!.documents > 20 && valid!.documents < 60);
    const loaded = loadTokenizer(folder);
    const decoded = [train, valid!].flatMap(({ path }) => {
      const source = openTokenFile(path);
      return Array.from(source.lengths, (_, i) => loaded.decode(source.read(i)));
    });
    assertEquals(decoded.sort(), texts.sort());

    const fails = async (more: Partial<typeof options>, what: string) => {
      const { message } = await assertRejects(
        () => tokenizeFiles({ ...options, ...more, outDir: join(folder, "no") }),
        Error,
      );
      assertStringIncludes(message, what);
      const left = [...Deno.readDirSync(folder)].some(({ name }) => name === "no")
        ? [...Deno.readDirSync(join(folder, "no/train/en"))]
        : [];
      assertEquals(left, []);
    };
    await fails({ field: "text" }, `${path}, line 1: no text in the field "text" (fields: body)`);
    await fails({ inputs: [join(folder, "none.txt")] }, "none.txt is missing");
    await fails({ inputs: [tokenizer] }, "neither .txt nor .jsonl");
    await fails({ validationFraction: 1e-9 }, "would be empty");
    await fails({ tokenizer: join(folder, "none.json") }, "--train_bpe");
    Deno.writeTextFileSync(join(folder, "bad.jsonl"), '{"body": "x"}\n{"body": ');
    await fails({ inputs: [join(folder, "bad.jsonl")] }, "bad.jsonl, line 2: not a JSON object");
    Deno.writeFileSync(join(folder, "bad.txt"), Uint8Array.of(65, 0xff, 66));
    await fails({ inputs: [join(folder, "bad.txt")] }, "bad.txt is not UTF-8");
  }));

Deno.test("loadTokenizer() says what is wrong with a file", () =>
  inScratch((folder) => {
    const path = join(folder, "tokenizer.json");
    assertThrows(() => loadTokenizer(folder), Deno.errors.NotFound, `${path} is missing`);
    for (
      const [text, problem] of [
        ["{", "is not JSON"],
        ["[]", "no model"],
        ["null", "no model"],
        ['{"model": {"type": "BPE"}}', "no model with a vocabulary"],
        ['{"model": {"type": "Unheard", "vocab": {}}}', "cannot be used (model Unheard)"],
      ]
    ) {
      Deno.writeTextFileSync(path, text);
      assertThrows(() => loadTokenizer(path), SyntaxError, problem);
    }
  }));

Deno.test("loadTokenizer() takes bos and eos from the settings beside it", () =>
  inScratch((folder) => {
    const trainer = createBpeTrainer();
    trainer.add(story);
    Deno.writeTextFileSync(join(folder, "tokenizer.json"), JSON.stringify(trainer.train(260)));
    const settings = { bos_token: { content: "</s>" }, eos_token: "<s>" };
    Deno.writeTextFileSync(join(folder, "tokenizer_config.json"), JSON.stringify(settings));
    const { bosId, eosId } = loadTokenizer(folder);
    assertEquals([bosId, eosId], [2, 1]);
  }));

const demoTokenizer = new URL("../../configs/demo/tokenizer.json", import.meta.url).pathname;

/** Signed tokens of all samples of a written file. */
function samplesOf(path: string): number[][] {
  const file = openTokenFile(path);
  return Array.from(file.lengths, (_, i) => [...file.read(i)]);
}

Deno.test("tokenizeFiles() makes the same of text in any form, compressed or not", () =>
  inScratch(async (folder) => {
    const texts = ["One.", "Two: ñ 日本.", "Three."], outputs: number[][][] = [];
    writeFiles(folder, {
      "a.txt": texts.join("\n\n"),
      "b.txt.gz": texts.join("\n\n"),
      "c.jsonl": jsonLines(texts),
      "d.jsonl.zst": jsonLines(texts),
      "e.ndjson.gz": jsonLines(texts),
      "folder/tokenizer.json": "{}",
      "folder/f.jsonl.gz": jsonLines(texts),
    });
    for (const name of ["a.txt", "b.txt.gz", "c.jsonl", "d.jsonl.zst", "e.ndjson.gz", "folder"]) {
      const options = { inputs: [join(folder, name)], tokenizer: demoTokenizer, outDir: folder, name };
      outputs.push(samplesOf((await tokenizeFiles(options)).train.path));
    }
    assertEquals(outputs, outputs.map(() => outputs[0]!));
    assertEquals(outputs[0]!.length, 3);
  }));

Deno.test("tokenizeFiles() reads a column of Parquet, and names a row without text", () =>
  inScratch(async (folder) => {
    writeFiles(folder, { "a.parquet": parquetFixture("snappy"), "b.txt": parquetTexts.join("\n\n") });
    const options = { tokenizer: demoTokenizer, outDir: folder };
    const fails = async (field: string, what: string) => {
      const run = () => tokenizeFiles({ ...options, inputs: [join(folder, "a.parquet")], field });
      assertStringIncludes((await assertRejects(run, SyntaxError)).message, what);
    };
    await fails("text", 'a.parquet has no column "text"');
    await fails("content", 'a.parquet, row 7: no text in the column "content", but null');
    const documents: string[] = [];
    const firstRows = async () => {
      const files = listTextFiles([join(folder, "a.parquet")]);
      for await (const { text } of readDocuments(files, { field: "content" })) documents.push(text);
    };
    await assertRejects(firstRows, SyntaxError);
    assert(documents.length > 0 && documents.every((text, i) => text === parquetTexts[i]));
  }));

Deno.test("tokenizeFiles() masks the prompts of instructions, and only them", () =>
  inScratch(async (folder) => {
    const list = [
      { instruction: "Name the sea.", input: "", output: "The sea." },
      { instruction: "Who?", input: "a captain", output: "The captain." },
      { instruction: "No input.", output: "Right." },
    ];
    writeFiles(folder, {
      "list.json": JSON.stringify(list, null, 2),
      "lines.jsonl.gz": list.map((record) => JSON.stringify(record)).join("\n"),
    });
    const tokenizer = loadTokenizer(demoTokenizer), { bosId, eosId } = tokenizer;
    const expected = list.map(({ instruction, input = "", output }) => [
      -bosId!,
      ...tokenizer.encode(alpacaPrompt(instruction, input)).map((id) => -id),
      ...tokenizer.encode(output),
      eosId!,
    ]);
    for (const name of ["list.json", "lines.jsonl.gz"]) {
      const options = { inputs: [join(folder, name)], tokenizer, outDir: folder, name, instruct: true };
      const { train } = await tokenizeFiles(options);
      assertEquals(samplesOf(train.path), expected);
      assertEquals(train.documents, 3);
      assert(train.unigramEntropy > 0);
    }
    assertStringIncludes(alpacaPrompt("Who?", "a captain"), "paired with an input");
    const fails = async (content: string, what: string) => {
      writeFiles(folder, { "bad.json": content });
      const options = { inputs: [join(folder, "bad.json")], tokenizer, outDir: folder, instruct: true };
      assertStringIncludes((await assertRejects(() => tokenizeFiles(options), Error)).message, what);
    };
    await fails('[{"instruction": "x"}]', 'bad.json, entry 0: no text in the field "output" (fields: instruction)');
    await fails('[{"instruction": ', "bad.json: not JSON");
    await fails('{"instruction": 3}\n', 'bad.json, line 1: no text in the field "instruction"');
    await fails("[]", "would be empty");
    const untold = {
      inputs: [join(folder, "bad.json")],
      instruct: true,
      vocabSize: 300,
      path: join(folder, "own.json"),
    };
    assertStringIncludes(
      (await assertRejects(() => trainTokenizer(untold), Error)).message,
      "the text has no documents",
    );
    assertThrows(() => Deno.statSync(untold.path), Deno.errors.NotFound);
  }));
