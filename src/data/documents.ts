/** Documents from text files, read piece by piece: a file may be larger than memory. */
import { basename, join } from "node:path";
import { readContent } from "./stream/decompress.ts";
import { readRange } from "./stream/read_range.ts";
import { type RowFile, rowFileKind } from "./stream/row_file.ts";
import { readParquetRows } from "./stream/parquet_rows.ts";

export interface DocumentOptions {
  /**
   * What a document of a `.txt` file is: a `paragraph` (text between blank lines) or the whole `file`.
   *
   * @default {"paragraph"}
   */
  readonly split?: "paragraph" | "file";
  /** The field of a JSON line's object, or the Parquet column, that holds the text. @default {"text"} */
  readonly field?: string;
  /** Neighbouring paragraphs of a file are joined until they have this many characters. @default {0} */
  readonly minChars?: number;
  /** Documents are cut, at ends of sentences where there are any, into parts of about this many at most. @default {no limit} */
  readonly maxChars?: number;
}

/** One document and where the reader stands. */
export interface Document {
  readonly text: string;
  readonly path: string;
  /** Bytes read from the file so far. */
  readonly bytesRead: number;
}

/** A file to tokenize. */
export type TextFile = Omit<RowFile, "name">;

/** Which files are read: all kinds of text, or those that hold instructions. */
export interface TextFileKinds {
  /** What is read where a folder is named. */
  readonly inFolders: RegExp;
  readonly named: RegExp;
  /** For messages. */
  readonly words: string;
}

const textFileKinds: TextFileKinds = {
  inFolders: /\.((txt|jsonl|ndjson)(\.gz|\.zst)?|parquet)$/,
  named: /\.((txt|jsonl|ndjson)(\.gz|\.zst)?|parquet)$/,
  words: ".txt nor .jsonl nor .parquet, with .gz or .zst after the first two",
};

/**
 * The files that `inputs` name, folders replaced by the files of the right kinds directly in them, sorted. Throws
 * `Deno.errors.NotFound` for what is missing and `RangeError` for files of another kind.
 */
export function listTextFiles(inputs: readonly string[], kinds: TextFileKinds = textFileKinds): TextFile[] {
  const files: TextFile[] = [];
  const add = (path: string, bytes: number) => files.push({ path, bytes, ...rowFileKind(path)! });
  for (const input of inputs) {
    let info: Deno.FileInfo;
    try {
      info = Deno.statSync(input);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) throw new Deno.errors.NotFound(`The text ${input} is missing`);
      throw error;
    }
    if (info.isDirectory) {
      const names = [...Deno.readDirSync(input)].map(({ name }) => name).filter((name) => kinds.inFolders.test(name));
      if (names.length === 0) throw new RangeError(`The folder ${input} holds neither ${kinds.words}`);
      for (const name of names.sort()) add(join(input, name), sizeOf(join(input, name)));
    } else if (kinds.named.test(input)) add(input, info.size);
    else throw new RangeError(`${input} is neither ${kinds.words}: ${basename(input)} cannot be read`);
  }
  if (files.length === 0) throw new RangeError("No text was named: files, or folders of them, would work");
  return files;
}

function sizeOf(path: string): number {
  try {
    return Deno.statSync(path).size;
  } catch (error) {
    // Deno reads such names with a mark in place of what is no UTF-8, and finds nothing by them.
    if (!path.includes("\ufffd") || !(error instanceof Deno.errors.NotFound)) throw error;
    throw new RangeError(`${path} cannot be opened, as its name is not UTF-8; another name would work`);
  }
}

/** Lines without their ends, with the bytes read so far. Throws `SyntaxError` on bytes that are not UTF-8. */
export async function* readLines(file: TextFile): AsyncGenerator<{ line: string; bytesRead: number }> {
  const { path } = file, decoder = new TextDecoder("utf-8", { fatal: true });
  let bytesRead = 0;
  let rest = "";
  const decode = (bytes?: Uint8Array) => {
    try {
      return bytes ? decoder.decode(bytes, { stream: true }) : decoder.decode();
    } catch {
      throw new SyntaxError(`${path} is not UTF-8 text (near byte ${bytesRead})`);
    }
  };
  const read: typeof readRange = async (...range) => {
    const bytes = await readRange(...range);
    bytesRead = range[1] + bytes.length;
    return bytes;
  };
  for await (const piece of readContent(file, read)) {
    const lines = (rest + decode(piece)).split("\n");
    rest = lines.pop()!;
    for (const line of lines) yield { line: line.replace(/\r$/, ""), bytesRead };
  }
  rest += decode();
  if (rest !== "") yield { line: rest.replace(/\r$/, ""), bytesRead };
}

/** Documents as the files have them. */
async function* rawDocuments(file: TextFile, options: DocumentOptions): AsyncGenerator<Document> {
  const field = options.field ?? "text", { path } = file;
  if (file.format === "parquet") {
    const place = { content: field, from: { row: 0, byte: 0 }, read: readRange };
    for await (const row of readParquetRows(file, place)) {
      if (row.problem !== undefined) throw new SyntaxError(row.problem);
      yield { text: row.text, path, bytesRead: Math.round(row.share * file.bytes) };
    }
    return;
  }
  let lines: string[] = [];
  let number = 0;
  let bytes = 0;
  for await (const { line, bytesRead } of readLines(file)) {
    number++;
    bytes = bytesRead;
    if (file.format === "json") {
      if (line.trim() === "") continue;
      let record: unknown;
      try {
        record = JSON.parse(line);
      } catch {
        throw new SyntaxError(`${path}, line ${number}: not a JSON object: ${line.slice(0, 60)}`);
      }
      const text = (record as Record<string, unknown> | null)?.[field];
      if (typeof text !== "string") {
        const names = Object.keys(record ?? {}).join(", ") || "none";
        const seen = text === undefined ? "" : `: saw ${JSON.stringify(text).slice(0, 40)}`;
        throw new SyntaxError(`${path}, line ${number}: no text in the field "${field}"${seen} (fields: ${names})`);
      }
      yield { text, path, bytesRead };
    } else if (options.split === "file" || line.trim() !== "") lines.push(line);
    else if (lines.length > 0) {
      yield { text: lines.join("\n"), path, bytesRead };
      lines = [];
    }
  }
  if (lines.length > 0) yield { text: lines.join("\n"), path, bytesRead: bytes };
}

/** Cuts at ends of sentences into parts of about equal size, none far above `maxChars`. */
function cut(text: string, maxChars: number): string[] {
  if (text.length <= maxChars) return [text];
  const target = text.length / Math.ceil(text.length / maxChars);
  const parts: string[] = [];
  let part = "";
  for (const sentence of text.split(/(?<=[.!?]["”’)]?)\s+(?=\S)/)) {
    if (part.length > target / 3 && part.length + sentence.length / 2 > target) {
      parts.push(part);
      part = "";
    }
    part += (part && " ") + sentence;
  }
  if (part.length <= target / 3 && parts.length > 0) parts[parts.length - 1] += " " + part;
  else parts.push(part);
  return parts;
}

/** All documents of the files, in order; white space at both ends is dropped, and so are empty documents. */
export async function* readDocuments(
  files: readonly TextFile[],
  options: DocumentOptions = {},
): AsyncGenerator<Document> {
  const { minChars = 0, maxChars = Infinity } = options;
  for (const file of files) {
    const { path } = file, join = file.format === "text" && minChars > 0;
    let bytesRead = 0;
    /** A document that waits, since what is left at the end of the file may be too short to stand alone. */
    let ready = "";
    let held = "";
    for await (const document of rawDocuments(file, options)) {
      bytesRead = document.bytesRead;
      const text = document.text.trim();
      if (text === "") continue;
      held += (held && "\n\n") + text;
      if (join && held.length < minChars) continue;
      if (ready !== "") { for (const part of cut(ready, maxChars)) yield { text: part, path, bytesRead }; }
      ready = held;
      held = "";
    }
    if (held !== "") ready += (ready && "\n\n") + held;
    if (ready !== "") { for (const part of cut(ready, maxChars)) yield { text: part, path, bytesRead }; }
  }
}
