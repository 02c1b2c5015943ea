/** What the tests of streaming data share. */
import { join } from "node:path";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { closeTokenFiles } from "../token_file.ts";
import type { DocumentStream } from "./document_stream.ts";

export async function inScratch(run: (folder: string) => Promise<void> | void): Promise<void> {
  const folder = Deno.makeTempDirSync();
  try {
    await run(folder);
  } finally {
    closeTokenFiles();
    Deno.removeSync(folder, { recursive: true });
  }
}

/** Files in folders as named; `.gz` and `.zst` are compressed. */
export function writeFiles(folder: string, files: Readonly<Record<string, string | Uint8Array>>): void {
  for (const [name, content] of Object.entries(files)) {
    const path = join(folder, name);
    Deno.mkdirSync(join(path, ".."), { recursive: true });
    const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
    Deno.writeFileSync(
      path,
      name.endsWith(".gz") ? gzipSync(bytes) : name.endsWith(".zst") ? zstdCompressSync(bytes) : bytes,
    );
  }
}

export const jsonLines = (texts: readonly string[]) => texts.map((text) => JSON.stringify({ text }) + "\n").join("");

export const parquetFixture = (codec: "zstd" | "snappy" | "gzip") =>
  Deno.readFileSync(new URL(`./testdata/${codec}.parquet`, import.meta.url));

/** Texts of the fixtures, all but the seventh row, which is null. */
export const parquetTexts = Array.from({ length: 25 }, (_, i) => `Row ${i} of the table.`).filter((_, i) => i !== 7);

/** Texts to the end of the epoch. */
export async function takeEpoch(stream: DocumentStream, limit = Infinity): Promise<string[]> {
  const texts: string[] = [];
  for (let document; texts.length < limit && (document = await stream.peek());) {
    texts.push(document.text);
    stream.advance();
  }
  return texts;
}
