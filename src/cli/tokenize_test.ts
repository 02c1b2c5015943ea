import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { join } from "node:path";
import { loadTokenizer } from "../data/mod.ts";
import { closeTokenFiles, openTokenFile } from "../data/token_file.ts";
import { inScratch, jsonLines, onSmallDisk, troupe } from "./_testing.ts";
import { progressLine } from "./tokenize.ts";

const text = Array.from({ length: 40 }, (_, i) => `Paragraph ${i} says that the sea is kind, and the captain is not.`)
  .join("\n\n");

/** A text file, and a tokenizer and data set made of it. */
async function made(folder: string) {
  const input = join(folder, "sea.txt"), tokenizer = join(folder, "tokenizer.json"), out = join(folder, "data");
  await Deno.writeTextFile(input, text);
  const ran = await troupe("tokenize", "--tokenizer", tokenizer, "--train_bpe", "280", "--out", out, "--json", input);
  return { input, tokenizer, out, ran };
}

Deno.test("tokenize makes a tokenizer and a data set that decodes to the text", async () => {
  await inScratch(async (folder) => {
    const { tokenizer, ran } = await made(folder);
    assertEquals(ran.code, 0, ran.err);
    const [report] = jsonLines<{ trainedEntries: number; train: { path: string; documents: number } }>(ran);
    assertEquals([report.trainedEntries, report.train.documents], [280, 40]);
    const source = openTokenFile(report.train.path), { decode, bosId, eosId } = loadTokenizer(tokenizer);
    try {
      const ids = source.read(7);
      assertEquals([ids[0], ids.at(-1)], [bosId, eosId]);
      assertEquals(decode(ids), "Paragraph 7 says that the sea is kind, and the captain is not.");
    } finally {
      closeTokenFiles();
    }
  });
});

Deno.test("tokenize passes its arguments on", async () => {
  await inScratch(async (folder) => {
    const { input, tokenizer } = await made(folder);
    const out = join(folder, "other");
    const places = ["--tokenizer", tokenizer, "--out", out, "--name", "sea", "--subset", "books"];
    const ran = await troupe("tokenize", ...places, "--validation", "0.25", "--no_bos", "--no-eos", input);
    assertEquals(ran.code, 0, ran.err);
    assertMatch(ran.out, /nats per token/);
    const { bosId, eosId } = loadTokenizer(tokenizer);
    for (const split of ["train", "valid"]) {
      const source = openTokenFile(join(out, split, "books", "sea.bin"));
      try {
        const ids = source.read(0);
        assert(!ids.includes(bosId!) && !ids.includes(eosId!), `${ids}`);
      } finally {
        closeTokenFiles();
      }
    }
    const whole = await troupe("tokenize", ...places, "--overwrite", "--split", "file", "--json", input);
    assertEquals(jsonLines<{ train: { documents: number } }>(whole)[0].train.documents, 1);
  });
});

Deno.test("tokenize refuses in one sentence what cannot work, and leaves nothing behind", async () => {
  await inScratch(async (folder) => {
    const { input, tokenizer, out } = await made(folder);
    const other = join(folder, "other"), notText = join(folder, "sea.pdf"), notUtf8 = join(folder, "latin.txt");
    await Deno.writeTextFile(notText, text);
    await Deno.writeFile(notUtf8, new Uint8Array([0x41, 0xff, 0xfe]));
    const set = ["--tokenizer", tokenizer, "--out", other];
    const cases: [string[], number, RegExp][] = [
      [[...set], 2, /no text was named/],
      [["--out", other, input], 2, /--tokenizer is missing/],
      [["--tokenizer", tokenizer, input], 2, /nothing to do/],
      [[...set, "--validation", "1", input], 2, /--validation: 1 is not a share/],
      [[...set, "--train_bpe", "0", input], 2, /--train_bpe: 0 is not above 0/],
      [["--tokenizer", join(folder, "none.json"), "--out", other, input], 1, /none\.json is missing/],
      [["--tokenizer", tokenizer, "--out", out, input], 1, /data\.bin.* exists already.*--overwrite/],
      [[...set, "--train_bpe", "300", input], 1, /tokenizer\.json exists already.*--overwrite/],
      [[...set, "--workers", "9999", input], 2, /--workers: 9999 is more than 256/],
      [[...set, "--subset", "../other", input], 2, /--subset: "\.\.\/other" is no plain name, such as en/],
      [[...set, "--name", "..", input], 2, /--name: "\.\." is no plain name/],
      [["--tokenizer", tokenizer, "--out", input, input], 1, /a part of the path is a file, not a folder/],
      [[...set, join(folder, "none.txt")], 1, /none\.txt is missing/],
      [[...set, notText], 1, /sea\.pdf is neither \.txt nor \.jsonl/],
      [[...set, notUtf8], 1, /latin\.txt is not UTF-8/],
    ];
    for (const [args, code, message] of cases) {
      const ran = await troupe("tokenize", ...args);
      assertEquals([ran.code, ran.out], [code, ""], args.join(" "));
      assertMatch(ran.err, message);
      assertEquals(ran.err.split("\n").length, 1, ran.err);
    }
    const left = await Array.fromAsync(Deno.readDir(join(other, "train", "en")), ({ name }) => name).catch(() => []);
    assertEquals(left, []);
  });
});

Deno.test("tokenize on a full disk says so and removes its attempt", () =>
  inScratch(async (folder) => {
    const { tokenizer } = await made(folder), input = join(folder, "large.txt");
    await Deno.writeTextFile(input, text.repeat(300));
    await onSmallDisk(async (disk) => {
      const ran = await troupe("tokenize", "--tokenizer", tokenizer, "--out", disk, input);
      assertEquals(ran.code, 1);
      assertMatch(ran.err, /^troupe tokenize: Writing .*data\.bin.* failed: No space left/);
      const left = await Array.fromAsync(Deno.readDir(join(disk, "train", "en")), ({ name }) => name);
      assertEquals(left, []);
    });
  }));

Deno.test("tokenize --help tells what it takes and writes", async () => {
  const { code, out } = await troupe("tokenize", "--help");
  assertEquals(code, 0);
  for (const word of ["Usage: troupe tokenize [INPUTS…]", "--train_bpe N", "OUT/train/SUBSET/NAME.bin"]) {
    assertStringIncludes(out, word);
  }
});

Deno.test("progressLine() shows share and counts", () => {
  const progress = { bytes: 500, totalBytes: 1000, documents: 1200, tokens: 34_500 };
  assertEquals(
    progressLine({ stage: "tokenize", ...progress }),
    "tokenizing  50 %  500 B  1.20k documents  34.5k tokens",
  );
  assertEquals(
    progressLine({ stage: "train tokenizer", ...progress }),
    "training the tokenizer on 1.20k documents, 1000 B",
  );
});
