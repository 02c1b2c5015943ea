import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { toMicroBatch } from "../data/batch.ts";
import { inScratch, jsonLines, tinyRun, troupe } from "./_testing.ts";
import { type RowView, viewRow } from "./data.ts";

/** Two segments of three and five tokens; the labels are raw, as data sets give them. */
const row = (tokens: number[], labels: number[]) =>
  toMicroBatch({
    tokens: Int32Array.from(tokens),
    labels: Int32Array.from(labels),
    indexes: Uint32Array.of(0, 1, 2, 0, 1, 2, 3, 4),
    typeIds: Uint32Array.of(0, 0, 0, 1, 1, 1, 1, 1),
    cuSeqlens: [0, 3, 8],
  });
const options = { types: ["en", "code"], packedIntoOne: false, padded: false };

Deno.test("viewRow() finds segments and says why labels are ignored", () => {
  const view = viewRow(row([5, 6, 7, 8, -9, 10, 0, 11], [6, 7, -100, -9, 10, 0, 11, 12]), {
    ...options,
    tokenizer: { decode: (ids) => Array.from(ids).join(" ") },
  });
  assertEquals(view.segments, [
    { start: 0, end: 3, positions: [0, 2], type: "en", ignored: 1, text: "5 6 7" },
    { start: 3, end: 8, positions: [0, 4], type: "code", ignored: 2, text: "8 9 10 0 11" },
  ]);
  assertEquals([view.tokens, view.labels, view.longestSegment], [8, 5, 5]);
  assertEquals(view.ignored, {
    "the last token of a segment, with none to predict": 1,
    "the next token is context only (negative in the file)": 1,
    "the next token has id 0, which is never a target": 1,
  });
});

Deno.test("viewRow() tells padding from tokens with id 0", () => {
  const padded = row([5, 6, 7, 8, 0, 10, 0, 0], [6, 7, -100, 0, 10, -100, 0, 0]);
  assertEquals(viewRow(padded, { ...options, padded: true }).ignored, {
    "the last token of a segment, with none to predict": 2,
    "the next token has id 0, which is never a target": 1,
    padding: 2,
  });
});

Deno.test("data inspect shows the data set and every row of a batch, with text", () =>
  inScratch(async (folder) => {
    const { config } = await tinyRun(folder);
    const ran = await troupe("data", "inspect", "--config", config, "--batch", "2", "--json");
    assertEquals(ran.code, 0, ran.err);
    const [data, ...rows] = jsonLines(ran);
    assertEquals([data.tokens_per_row, data.micro_num, data.types], [32, 2, ["en"]]);
    assertEquals(rows.map(({ batch, row }) => [batch, row]), [[2, 0], [2, 1]]);
    for (const { tokens, labels, ignored, segments } of rows as unknown as RowView[]) {
      const lost = Object.values(ignored).reduce((sum, count) => sum + count, 0);
      assertEquals(labels + lost, tokens);
      assertEquals(segments.reduce((sum, segment) => sum + segment.ignored, 0), lost);
      assertEquals([segments[0].start, segments.at(-1)!.end], [0, 32]);
      assert(segments.some(({ text }) => /sea|captain|says/.test(text!)), JSON.stringify(segments));
    }

    const shown = await troupe("data", "inspect", "--config", config, "--row", "1", "--chars", "9");
    assertMatch(shown.out, /32 tokens: micro_bsz 2 × seq_len 16, samples end to end, each by itself/);
    assertStringIncludes(shown.out, "batch 0, row 1");
    assert(!shown.out.includes("row 0:"));
    assert([...shown.out.matchAll(/^ {6}"(.*)"$/gm)].every(([, text]) => JSON.parse(`"${text}"`).length <= 10));
  }));

Deno.test("data inspect refuses in one sentence what cannot work", () =>
  inScratch(async (folder) => {
    const { config } = await tinyRun(folder);
    const cases: [string[], number, RegExp][] = [
      [[], 2, /action is missing: inspect/],
      [["insepct"], 2, /"insepct" is not understood; inspect works/],
      [["inspect", "--row", "2"], 2, /batch 0 has 2 rows, numbered from 0: saw 2/],
      [["inspect", "--batch", "-1"], 2, /--batch: -1 is below 0/],
      [["inspect", "--batch", "1000000000"], 2, /--batch: 1000000000 is beyond the run, which has \d+ batches/],
      [["inspect", "--tokenizer", `${folder}/none.json`], 1, /none\.json is missing/],
      [["inspect", "--set", `data.train_folder=${folder}/none`], 1, /data\.train_folder .*none is not a folder/],
      [["inspect", "--set", "data.seq_len=0"], 2, /data\.seq_len/],
    ];
    for (const [args, code, message] of cases) {
      const ran = await troupe("data", ...args, "--config", config);
      assertEquals(ran.code, code, ran.err);
      assertMatch(ran.err, message);
    }
  }));

Deno.test("data --help tells what it shows", async () => {
  const { code, out } = await troupe("data", "--help");
  assertEquals(code, 0);
  for (const word of ["Usage: troupe data ACTION", "data inspect --batch 10", "--tokenizer TEXT"]) {
    assertStringIncludes(out, word);
  }
});

Deno.test("data inspect shows a stream's rows", () =>
  inScratch(async (folder) => {
    const text = `${folder}/text`, changes = ["type=streaming", `train_folder=${text}`, "seq_len=16"];
    Deno.mkdirSync(text);
    Deno.writeTextFileSync(`${text}/a.txt`, "The sea.\n\nThe captain and the mate.\n");
    const ran = await troupe("data", "inspect", ...changes.flatMap((change) => ["--set", `data.${change}`]));
    assertEquals(ran.code, 0, ran.err);
    assertStringIncludes(ran.out, "a stream of rows of 64 tokens");
    assertStringIncludes(ran.out, '"The sea."');
    assertMatch(ran.out, /ignored: padding/);
  }));

Deno.test("data inspect shows a mixture: shares, times through, and the rows of each kind", () =>
  inScratch(async (folder) => {
    const { config, tokenizer } = await tinyRun(folder), text = `${folder}/code.txt`;
    await Deno.writeTextFile(text, Array.from({ length: 30 }, (_, i) => `let x${i} = ${i};`).join("\n\n"));
    const made = await troupe("tokenize", "--tokenizer", tokenizer, "--out", folder, "--subset", "code", text);
    assertEquals(made.code, 0, made.err);
    const args = ["data", "inspect", "--config", config, "--set", "data.mixture={en: 3, code: 1}"];
    const shown = await troupe(...args, "--set", "data.micro_num=1024", "--set", "data.total_steps=2", "--row", "0");
    assertMatch(shown.out, /mixture: 25\.0 % from code, 512 rows in all steps of its \d+: \d+\.\d\d times through/);
    assertMatch(shown.out, /mixture: 75\.0 % from en, 1,536 rows/);
    assertStringIncludes(shown.out, "batch 0, rows by kind of their first token: code 256, en 768");
    const [{ mixture }] = jsonLines<{ mixture: { name: string; share: number }[] }>(await troupe(...args, "--json"));
    assertEquals(mixture.map(({ name, share }) => [name, share]), [["code", 0.25], ["en", 0.75]]);
    const wrong = await troupe("data", "inspect", "--config", config, "--set", "data.mixture={fr: 1}");
    assertEquals(wrong.code, 1);
    assertMatch(wrong.err, /data\.mixture names "fr", which is no folder of the data; code, en are/);
  }));
