/** Documents of JSON lines and of plain text, one after the other, and where each ends. */
import { type ChatTemplate, chatText } from "./chat.ts";
import { readContent } from "./decompress.ts";
import type { ReadRange } from "./read_range.ts";
import type { Place, Row, RowFile } from "./row_file.ts";

/** Longer lines are refused: something that is no text must not fill the memory. */
const maxLineBytes = 1 << 28;

/** Lines as bytes, without their ends; `end` is the byte after the end. A line is valid until the next is asked for. */
async function* splitLines(
  pieces: AsyncGenerator<Uint8Array>,
  path: string,
  start: number,
): AsyncGenerator<{ line: Uint8Array; end: number }> {
  let held: Uint8Array[] = [], heldBytes = 0, end = start;
  const join = (last: Uint8Array): Uint8Array => {
    if (held.length === 0) return last;
    const line = new Uint8Array(heldBytes + last.length);
    let at = 0;
    for (const part of [...held, last]) {
      line.set(part, at);
      at += part.length;
    }
    held = [];
    heldBytes = 0;
    return line;
  };
  for await (const piece of pieces) {
    let from = 0;
    for (let to; (to = piece.indexOf(10, from)) >= 0; from = to + 1) {
      const line = join(piece.subarray(from, to));
      end += line.length + 1;
      yield { line, end };
    }
    if (from === piece.length) continue;
    held.push(piece.slice(from));
    heldBytes += piece.length - from;
    if (heldBytes > maxLineBytes) {
      throw new SyntaxError(`${path} has a line of more than ${maxLineBytes} bytes, which is no text`);
    }
  }
  if (heldBytes > 0) {
    const line = join(new Uint8Array(0));
    yield { line, end: end + line.length };
  }
}

const decoder = new TextDecoder("utf-8", { fatal: true });

/** The text of a JSON object's field, or what is wrong with the line. */
function jsonText(line: string, field: string, chat: ChatTemplate | undefined): { text: string } | { problem: string } {
  let record: unknown;
  try {
    record = JSON.parse(line);
  } catch {
    return { problem: `not JSON: ${line.slice(0, 60)}` };
  }
  if (typeof record !== "object" || record === null || Array.isArray(record)) {
    return { problem: `not a JSON object: ${line.slice(0, 60)}` };
  }
  const text = (record as Record<string, unknown>)[field];
  if (typeof text === "string") return { text };
  if (Array.isArray(text)) {
    const made = chatText(text, chat);
    return "text" in made ? made : { problem: `the field "${field}" holds ${made.problem}` };
  }
  return { problem: `no text in the field "${field}" (fields: ${Object.keys(record).join(", ") || "none"})` };
}

/**
 * The documents of a file from a place on. In JSON lines a document is the field `content` of each line's object; in
 * text it is what stands between blank lines. Lines that cannot be used come as rows with a `problem`. Throws
 * `SyntaxError` where the file as a whole cannot be read.
 */
export async function* readLineRows(
  file: RowFile,
  { content, from, read, chat }: {
    readonly content: string;
    readonly from: Place;
    readonly read: ReadRange;
    readonly chat?: ChatTemplate | undefined;
  },
): AsyncGenerator<Row> {
  const seekable = file.compression === "none";
  let lines = seekable ? from.row : 0;
  let paragraph: string[] = [], begun = 0, broken = false, byte = 0;
  const finished = (): Row => {
    const place = { row: lines, byte };
    const where = `${file.path}, line ${begun}`;
    const row = broken ? { problem: `${where}: not UTF-8 text`, place } : { text: paragraph.join("\n"), where, place };
    paragraph = [];
    broken = false;
    return row;
  };
  const bytes = readContent(file, read, seekable ? from.byte : 0);
  for await (const { line, end } of splitLines(bytes, file.path, seekable ? from.byte : 0)) {
    lines++;
    byte = seekable ? end : 0;
    if (lines <= from.row) continue; // a compressed file is read again from its beginning
    let text: string | undefined;
    try {
      text = decoder.decode(line).replace(/\r$/, "");
    } catch { /* not UTF-8: a problem of this document alone */ }
    if (file.format === "json") {
      if (text?.trim() === "") continue;
      const where = `${file.path}, line ${lines}`, place = { row: lines, byte };
      const parsed = text === undefined ? { problem: "not UTF-8 text" } : jsonText(text, content, chat);
      yield "text" in parsed ? { text: parsed.text, where, place } : { problem: `${where}: ${parsed.problem}`, place };
    } else if (text?.trim() === "") {
      if (paragraph.length > 0) yield finished();
    } else {
      if (paragraph.length === 0) begun = lines;
      if (text === undefined) broken = true;
      paragraph.push(text ?? "");
    }
  }
  if (paragraph.length > 0) yield finished();
}
