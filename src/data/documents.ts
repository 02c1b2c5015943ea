/** Documents from text files, read piece by piece: a file may be larger than memory. */
import { basename, join } from "node:path";

export interface DocumentOptions {
  /**
   * What a document of a `.txt` file is: a `paragraph` (text between blank lines) or the whole `file`.
   *
   * @default {"paragraph"}
   */
  readonly split?: "paragraph" | "file";
  /** The field of a `.jsonl` file's objects that holds the text. @default {"text"} */
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

/**
 * The files that `inputs` name, folders replaced by the `.txt` and `.jsonl` files directly in them, sorted. Throws
 * `Deno.errors.NotFound` for what is missing and `RangeError` for files of another kind.
 */
export function listTextFiles(inputs: readonly string[]): { path: string; bytes: number }[] {
  const files: { path: string; bytes: number }[] = [];
  for (const input of inputs) {
    let info: Deno.FileInfo;
    try {
      info = Deno.statSync(input);
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) throw new Deno.errors.NotFound(`The text ${input} is missing`);
      throw error;
    }
    if (info.isDirectory) {
      const names = [...Deno.readDirSync(input)].map(({ name }) => name).filter((name) => /\.(txt|jsonl)$/.test(name));
      if (names.length === 0) throw new RangeError(`The folder ${input} holds no .txt or .jsonl files`);
      for (const name of names.sort()) {
        files.push({ path: join(input, name), bytes: Deno.statSync(join(input, name)).size });
      }
    } else if (/\.(txt|jsonl)$/.test(input)) files.push({ path: input, bytes: info.size });
    else throw new RangeError(`${input} is neither .txt nor .jsonl: ${basename(input)} cannot be read as text`);
  }
  if (files.length === 0) {
    throw new RangeError("No text was named: .txt or .jsonl files, or folders of them, would work");
  }
  return files;
}

/** Lines without their ends, with the bytes read so far. Throws `SyntaxError` on bytes that are not UTF-8. */
async function* readLines(path: string): AsyncGenerator<{ line: string; bytesRead: number }> {
  using file = await Deno.open(path, { read: true });
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const buffer = new Uint8Array(1 << 18);
  let bytesRead = 0;
  let rest = "";
  const decode = (bytes?: Uint8Array) => {
    try {
      return bytes ? decoder.decode(bytes, { stream: true }) : decoder.decode();
    } catch {
      throw new SyntaxError(`${path} is not UTF-8 text (near byte ${bytesRead})`);
    }
  };
  for (;;) {
    const count = await file.read(buffer);
    if (count === null) break;
    bytesRead += count;
    const lines = (rest + decode(buffer.subarray(0, count))).split("\n");
    rest = lines.pop()!;
    for (const line of lines) yield { line: line.replace(/\r$/, ""), bytesRead };
  }
  rest += decode();
  if (rest !== "") yield { line: rest.replace(/\r$/, ""), bytesRead };
}

/** Documents as the files have them. */
async function* rawDocuments(path: string, options: DocumentOptions): AsyncGenerator<Document> {
  const field = options.field ?? "text";
  let lines: string[] = [];
  let number = 0;
  let bytes = 0;
  for await (const { line, bytesRead } of readLines(path)) {
    number++;
    bytes = bytesRead;
    if (path.endsWith(".jsonl")) {
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
        throw new SyntaxError(`${path}, line ${number}: no text in the field "${field}" (fields: ${names})`);
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
  files: readonly { readonly path: string }[],
  options: DocumentOptions = {},
): AsyncGenerator<Document> {
  const { minChars = 0, maxChars = Infinity } = options;
  for (const { path } of files) {
    const join = path.endsWith(".txt") && minChars > 0;
    let bytesRead = 0;
    /** A document that waits, since what is left at the end of the file may be too short to stand alone. */
    let ready = "";
    let held = "";
    for await (const document of rawDocuments(path, options)) {
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
