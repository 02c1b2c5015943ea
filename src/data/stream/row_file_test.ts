import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { inScratch, jsonLines, parquetFixture, parquetTexts, writeFiles } from "./_testing.ts";
import { readRange } from "./read_range.ts";
import { hashRowFiles, listRowFiles, readRows, type Row, type RowFile } from "./row_file.ts";

const beginning = { row: 0, byte: 0 };

async function take(file: RowFile, { content = "text", from = beginning } = {}): Promise<Row[]> {
  const rows: Row[] = [];
  for await (const row of readRows(file, { content, from, read: readRange })) {
    const { place } = row;
    rows.push(
      row.problem === undefined ? { text: row.text, where: row.where, place } : { problem: row.problem, place },
    );
  }
  return rows;
}

const texts = Array.from({ length: 40 }, (_, i) => `Document ${i} says "ñ 日本" ${"x".repeat(i * 31)}`);

Deno.test("listRowFiles() takes the split train, and all where nothing is named for a split", () =>
  inScratch((folder) => {
    writeFiles(folder, {
      "plain/b.jsonl.zst": "x",
      "plain/a.txt": "x",
      "plain/.hidden.txt": "x",
      "plain/README.md": "x",
      "plain/dataset_info.json": "{}",
      "plain/empty.jsonl": "",
      "plain/sub/c.parquet": "x",
      "plain/test-0.parquet": "x",
      "hub/data/train-00000-of-00002.parquet": "x",
      "hub/data/train-00001-of-00002.parquet": "x",
      "hub/data/validation-00000-of-00001.parquet": "x",
      "hub/constraints.txt": "x",
      "none/a.csv": "x",
    });
    const names = (name: string) => listRowFiles(`${folder}/${name}`).map(({ name }) => name);
    assertEquals(names("plain"), ["a.txt", "b.jsonl.zst", "sub/c.parquet"]);
    assertEquals(names("hub"), ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]);
    assertThrows(() => names("none"), RangeError, "holds nothing to stream; .parquet");
    assertThrows(() => names("nowhere"), Deno.errors.NotFound, "nowhere is missing");
    const before = hashRowFiles(listRowFiles(`${folder}/plain`));
    writeFiles(folder, { "plain/a.txt": "xx" });
    assert(hashRowFiles(listRowFiles(`${folder}/plain`)) !== before);
  }));

Deno.test("readRows() gives the same documents from every form, and goes on from any of them", () =>
  inScratch(async (folder) => {
    writeFiles(folder, {
      "a.jsonl": jsonLines(texts),
      "b.jsonl.gz": jsonLines(texts),
      "c.json.zst": jsonLines(texts),
      "d.txt": texts.join("\n\n \n"),
      "e.txt.gz": "\n" + texts.join("\r\n\r\n") + "\n",
    });
    for (const file of listRowFiles(folder)) {
      const rows = await take(file);
      assertEquals(rows.map((row) => row.problem ?? row.text), texts, file.name);
      for (const stop of [0, 1, 17, 38, 39]) {
        assertEquals(await take(file, { from: rows[stop]!.place }), rows.slice(stop + 1), `${file.name} after ${stop}`);
      }
    }
  }));

Deno.test("readRows() reads Parquet in any of its codecs, over row groups, and names a row without text", () =>
  inScratch(async (folder) => {
    for (const codec of ["zstd", "snappy", "gzip"] as const) {
      writeFiles(folder, { "a.parquet": parquetFixture(codec) });
      const file = listRowFiles(folder)[0]!;
      const rows = await take(file, { content: "content" });
      assertEquals(rows.flatMap((row) => row.problem === undefined ? [row.text] : []), parquetTexts);
      assertEquals(rows[7]!.problem, `${file.path}, row 7: no text in the column "content", but null`);
      for (const stop of [0, 8, 9, 10, 24]) {
        assertEquals(await take(file, { content: "content", from: rows[stop]!.place }), rows.slice(stop + 1));
      }
      await assertRejects(() => take(file), SyntaxError, 'no column "text"; data.content_name may be id, content');
      const numbers = await take(file, { content: "id" });
      assert(numbers.every(({ problem }) => problem?.includes('no text in the column "id"')));
    }
  }));

Deno.test("readRows() reads files of several compressed parts, and refuses those that are cut off", () =>
  inScratch(async (folder) => {
    const [first, second] = [texts.slice(0, 25), texts.slice(25)].map((part) =>
      new TextEncoder().encode(jsonLines(part))
    );
    for (const [name, compress] of [["a.jsonl.gz", gzipSync], ["a.jsonl.zst", zstdCompressSync]] as const) {
      const whole = new Uint8Array([...compress(first!), ...compress(second!)]), path = `${folder}/${name}`;
      Deno.writeFileSync(path, whole);
      const [file] = listRowFiles(folder);
      assertEquals((await take(file!)).map((row) => row.problem ?? row.text), texts);
      Deno.writeFileSync(path, whole.subarray(0, whole.length - 9));
      await assertRejects(() => take(listRowFiles(folder)[0]!), SyntaxError, `${path} is damaged or not`);
      Deno.writeFileSync(path, whole.subarray(0, whole.length - 9));
      await assertRejects(() => take(file!), SyntaxError, `${path} shrank`);
      Deno.writeFileSync(path, first!);
      await assertRejects(() => take(listRowFiles(folder)[0]!), SyntaxError, `${path} is damaged or not`);
      Deno.removeSync(path);
    }
  }));

Deno.test("readRows() names the line of what cannot be used, and goes on", () =>
  inScratch(async (folder) => {
    const lines = ['{"text": "good"}', '{"text": 5, "id": 1}', "[1]", "null", '{"text": "cut', '{"text": "also good"}'];
    const bytes = new TextEncoder().encode(lines.join("\n") + "\n{}\n");
    bytes[bytes.indexOf(103)] = 0xff; // the g of "good"
    writeFiles(folder, { "a.jsonl": bytes, "b.txt": new Uint8Array([65, 10, 10, 0xfe, 10, 66, 10, 10, 67]) });
    const [a, b] = listRowFiles(folder);
    assertEquals((await take(a!)).map((row) => row.problem ?? row.text), [
      `${a!.path}, line 1: not UTF-8 text`,
      `${a!.path}, line 2: no text in the field "text" (fields: text, id)`,
      `${a!.path}, line 3: not a JSON object: [1]`,
      `${a!.path}, line 4: not a JSON object: null`,
      `${a!.path}, line 5: not JSON: {"text": "cut`,
      "also good",
      `${a!.path}, line 7: no text in the field "text" (fields: none)`,
    ]);
    assertEquals((await take(b!)).map((row) => row.problem ?? row.text), [
      "A",
      `${b!.path}, line 3: not UTF-8 text`,
      "C",
    ]);
  }));
