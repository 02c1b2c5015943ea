import { assert, assertEquals, assertNotEquals, assertRejects, assertThrows } from "@std/assert";
import { inScratch, jsonLines, parquetFixture, parquetTexts, takeEpoch, writeFiles } from "./_testing.ts";
import { type DocumentStreamOptions, openDocumentStream, type StreamPlace } from "./document_stream.ts";
import { readRange, retrying } from "./read_range.ts";
import { listRowFiles } from "./row_file.ts";

const numbered = (name: string, count: number) => Array.from({ length: count }, (_, i) => `${name} ${i}`);
const files = {
  "a.jsonl": jsonLines(numbered("a", 13)),
  "b.jsonl.gz": jsonLines(numbered("b", 30)),
  "c.txt": numbered("c", 7).join("\n\n"),
  "d.parquet": parquetFixture("zstd"),
  "e.jsonl": jsonLines([]) + "\n",
  "f.jsonl.zst": jsonLines(numbered("f", 3)) + "broken\n" + jsonLines(["f 3"]),
};
const all = [
  ...numbered("a", 13),
  ...numbered("b", 30),
  ...numbered("c", 7),
  ...parquetTexts,
  ...numbered("f", 4),
].sort();

const small = (folder: string, more: Partial<DocumentStreamOptions> = {}): DocumentStreamOptions => {
  // The fixture's column has another name than the lines' field.
  writeFiles(folder, files);
  for (const name of ["a.jsonl", "b.jsonl.gz", "f.jsonl.zst"] as const) {
    writeFiles(folder, { [name]: files[name].replaceAll('"text"', '"content"') });
  }
  return {
    files: listRowFiles(folder),
    content: "content",
    read: readRange,
    blockDocuments: 8,
    interleave: 3,
    ...more,
  };
};

Deno.test("openDocumentStream() gives every document once an epoch, each epoch in another order", () =>
  inScratch(async (folder) => {
    const notices: string[] = [];
    const options = small(folder, { onNotice: (line) => void notices.push(line) });
    const stream = openDocumentStream(options), epochs: string[][] = [];
    for (let epoch = 0; epoch < 3; epoch++) {
      epochs.push(await takeEpoch(stream));
      assertEquals(epochs.at(-1)!.toSorted(), all);
      assertEquals(stream.place().epoch, epoch);
      await stream.nextEpoch();
    }
    assertNotEquals(epochs[0], epochs[1]);
    assertNotEquals(epochs[1], epochs[2]);
    // Read in turn: the beginning has documents of several files, and not in the order of any.
    assert(new Set(epochs[0]!.slice(0, 8).map((text) => text[0])).size >= 3, epochs[0]!.join());
    assert(notices.some((line) => line.includes("f.jsonl.zst, line 4: not JSON: broken")), notices.join("\n"));
    assert(notices.some((line) => line.includes("d.parquet, row 7")), notices.join("\n"));
    await stream.close();

    const again = openDocumentStream(options), other = openDocumentStream({ ...options, seed: 5 });
    assertEquals(await takeEpoch(again), epochs[0]);
    assertNotEquals(await takeEpoch(other), epochs[0]);
    await again.close();
    await other.close();
  }));

Deno.test("openDocumentStream() goes on from any place, kept as JSON, over the end of an epoch", () =>
  inScratch(async (folder) => {
    const options = small(folder), stream = openDocumentStream(options);
    const places: string[] = [], texts: string[] = [];
    for (let epoch = 0; epoch < 2; epoch++) {
      for (;;) {
        places.push(JSON.stringify(stream.place()));
        const document = await stream.peek();
        if (!document) break;
        texts.push(document.text);
        stream.advance();
      }
      texts.push("end");
      await stream.nextEpoch();
    }
    assertEquals(texts.length, 2 * (all.length + 1));
    for (const [i, place] of places.slice(0, all.length + 4).entries()) {
      const resumed = openDocumentStream(options, JSON.parse(place) as StreamPlace);
      const rest = [...await takeEpoch(resumed), "end"];
      await resumed.nextEpoch();
      if (rest.length < texts.length - i) rest.push(...await takeEpoch(resumed), "end");
      assertEquals(rest, texts.slice(i), `from place ${i}`);
      await resumed.close();
    }
    const place = JSON.parse(places[20]!) as StreamPlace;
    for (const bad of [{ opened: 99 }, { open: [[6, 0, 0]] }, { epoch: -1 }, { turn: 9 }, { open: null }]) {
      const wrong = { ...place, ...bad } as unknown as StreamPlace;
      assertThrows(() => openDocumentStream(options, wrong), RangeError, "no place in a stream of 6 files");
    }
    const beyond = openDocumentStream(options, { ...place, index: 9 });
    await assertRejects(() => beyond.peek(), RangeError, "the data changed");
    await beyond.close();
    await stream.close();
  }));

Deno.test("openDocumentStream() gives up, with file and line, when too many rows cannot be used", () =>
  inScratch(async (folder) => {
    writeFiles(folder, { "a.jsonl": jsonLines(["good"]).repeat(5) + "bad\n".repeat(4) });
    const options = { files: listRowFiles(folder), content: "text", read: readRange };
    const patient = openDocumentStream({ ...options, maxCorrupt: 4 });
    assertEquals((await takeEpoch(patient)).length, 5);
    const strict = openDocumentStream({ ...options, maxCorrupt: 3 });
    await assertRejects(() => takeEpoch(strict), SyntaxError, "More than 3 rows cannot be used; the last is " + folder);
    await patient.close();
    await strict.close();
  }));

Deno.test("retrying() reads again what fails for a moment, and gives up in the end", () =>
  inScratch(async (folder) => {
    const options = small(folder), expected = openDocumentStream(options), notices: string[] = [];
    let reads = 0;
    const read = retrying(
      (path, offset, length) => ++reads % 3 === 0 ? readRange(path, offset, length) : Promise.reject(new Error("EIO")),
      { delayMs: 0, onNotice: (line) => void notices.push(line) },
    );
    const stream = openDocumentStream({ ...options, read });
    assertEquals(await takeEpoch(stream), await takeEpoch(expected));
    assert(notices[0]!.includes("at byte 0 failed (EIO); trying again"), notices[0]);
    await stream.close();
    await expected.close();

    const failing = retrying(() => Promise.reject(new Error("EIO")), { delayMs: 0, attempts: 3 });
    for (const file of options.files) {
      const dead = openDocumentStream({ ...options, files: [file], read: failing });
      await assertRejects(() => dead.peek(), Error, `Reading ${file.path} at byte`);
      await dead.close();
    }
    await assertRejects(() => retrying(readRange)(`${folder}/gone`, 0, 1), Deno.errors.NotFound);
  }));
