/**
 * Tokenized files: `NAME.bin` holds one JSON object a line with a `tokens` array; `NAME.bin.meta` is an NPY matrix of
 * (byte offset, token count) a line. Only the offset table is kept in memory; samples are read in place, on demand.
 */
import { type NpyType, parseNpyHeader } from "./npy.ts";

/** Samples that can be read in any order. */
export interface SampleSource {
  /** For messages, and for the type of the data. */
  readonly path: string;
  /** Tokens of each sample. */
  readonly lengths: ArrayLike<number>;
  /** Tokens of all samples. */
  readonly totalTokens: number;
  /** Signed tokens of sample `index`; valid until the next read of any sample of this source. */
  read(index: number): Int32Array;
}

/** Open files, kept to a number that every system allows, since corpora come in thousands of files. */
const openFiles = new Map<string, Deno.FsFile>();
const maxOpenFiles = 128;

function fileHandle(path: string): Deno.FsFile {
  let file = openFiles.get(path);
  if (file) openFiles.delete(path); // inserted again below: the map's order is the order of use
  else {
    file = Deno.openSync(path, { read: true });
    if (openFiles.size >= maxOpenFiles) {
      const [oldest, oldFile] = openFiles.entries().next().value!;
      openFiles.delete(oldest);
      oldFile.close();
    }
  }
  openFiles.set(path, file);
  return file;
}

/** Closes all token files. They are opened again when next read. */
export function closeTokenFiles(): void {
  for (const file of openFiles.values()) file.close();
  openFiles.clear();
}

/** Reads until `buffer` is full or the file ends; returns the bytes read. */
function readAt(path: string, offset: number, buffer: Uint8Array): number {
  const file = fileHandle(path);
  file.seekSync(offset, Deno.SeekMode.Start);
  let filled = 0;
  while (filled < buffer.length) {
    const count = file.readSync(buffer.subarray(filled));
    if (count === null || count === 0) break;
    filled += count;
  }
  return filled;
}

function fileSize(path: string): number | undefined {
  try {
    const info = Deno.statSync(path);
    return info.isFile ? info.size : undefined;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) return undefined;
    throw error;
  }
}

/** Shared by all files, since a read sample lives only until the next. Grows to the longest line seen. */
let lineBuffer = new Uint8Array(1 << 16);
let tokenBuffer = new Int32Array(1 << 14);

/**
 * Opens `path` (a `.bin` file) by its offset table.
 *
 * Throws `Deno.errors.NotFound` when the file or its `.meta` is missing (naming both), `SyntaxError` when the table is
 * not usable or does not fit the `.bin` file (cut off, not ascending). A sample that is not what the table says throws on
 * reading: `SyntaxError` with file and byte position.
 *
 * @param options.minLength Keep samples of at least this many tokens. Zero keeps all.
 */
export function openTokenFile(path: string, options: { minLength?: number } = {}): TokenFile {
  const metaPath = path + ".meta";
  openFiles.get(path)?.close(); // a file of this name may have been replaced since
  openFiles.delete(path);
  const bytes = fileSize(path);
  const metaBytes = fileSize(metaPath);
  if (bytes === undefined || metaBytes === undefined) {
    const missing = bytes === undefined ? path : metaPath;
    const needing = bytes === undefined ? metaPath : path;
    throw new Deno.errors.NotFound(
      `${missing} is missing: it is needed together with ${needing}. \`troupe tokenize\` writes both`,
    );
  }
  using meta = Deno.openSync(metaPath, { read: true });
  const head = new Uint8Array(Math.min(metaBytes, 1 << 16));
  readFully(meta, head, metaPath);
  const { type, rows, columns, dataStart } = parseNpyHeader(head, metaPath, metaBytes);
  if (columns < 2) {
    throw new SyntaxError(`${metaPath} has ${columns} columns; (byte offset, token count) is needed`);
  }
  const table = new LineTable(path, metaPath, bytes, rows, options.minLength ?? 0);
  // Piece by piece: a table may have tens of millions of rows.
  meta.seekSync(dataStart, Deno.SeekMode.Start);
  const words = columns * 2, pieceRows = Math.max(1, Math.floor((1 << 16) / words));
  const piece = new Int32Array(Math.min(pieceRows, rows) * words);
  for (let row = 0; row < rows; row += pieceRows) {
    const part = piece.subarray(0, Math.min(pieceRows, rows - row) * words);
    readRows(meta, part, type, metaPath);
    table.add(part, words);
  }
  table.end();
  return new TokenFile(path, table);
}

/** Fills `into` with numbers of 64 bits, low word first. */
function readRows(file: Deno.FsFile, into: Int32Array, type: NpyType, path: string): void {
  const words = type === "<i8" ? into : into.subarray(0, into.length / 2);
  readFully(file, new Uint8Array(words.buffer, words.byteOffset, words.byteLength), path);
  if (words === into) return;
  for (let i = words.length - 1; i >= 0; i--) {
    into[2 * i + 1] = words[i] >> 31;
    into[2 * i] = words[i];
  }
}

/** Bytes of the longest sample that is taken for one. */
const longestLine = 2 ** 31;

function readFully(file: Deno.FsFile, into: Uint8Array, path: string): void {
  for (let filled = 0; filled < into.length;) {
    const count = file.readSync(into.subarray(filled));
    if (count === null || count === 0) throw new SyntaxError(`${path} shrank while it was read`);
    filled += count;
  }
}

/** Of so many lines one has its place in the table. A power of two. */
const blockRows = 64;

/**
 * Where lines lie. Most of the time that a large table takes to open goes into memory that is touched for the first time,
 * so that a line has four bytes for its size here, and only every 64th its place.
 */
class LineTable {
  readonly #blocks: Float64Array;
  readonly #sizes: Uint32Array;
  /** Lines of the samples that are long enough; absent as long as all are. */
  #kept: Uint32Array | undefined;
  /** Tokens of the samples that are long enough. */
  readonly #lengths: Uint32Array;
  #samples = 0;
  #lines = 0;
  totalTokens = 0;
  /** The last line so far: where it begins, and its tokens. */
  #start = 0;
  #length = 0;

  constructor(
    private readonly path: string,
    private readonly metaPath: string,
    /** Of the `.bin` file. */
    private readonly bytes: number,
    readonly rows: number,
    private readonly minLength: number,
  ) {
    this.#blocks = new Float64Array(Math.ceil(rows / blockRows));
    this.#sizes = new Uint32Array(rows);
    this.#lengths = new Uint32Array(rows);
  }

  get lengths(): Uint32Array {
    return this.#lengths.subarray(0, this.#samples);
  }

  /** Adds lines: numbers of 64 bits, `words` words a line, of which the first is its place and the last its tokens. */
  add(piece: Int32Array, words: number): void {
    const last = words - 2;
    let start = this.#start, length = this.#length, line = this.#lines;
    for (let at = 0; at < piece.length; at += words) {
      const next = piece[at + 1] * 0x100000000 + (piece[at] >>> 0);
      if (line > 0) this.#close(line - 1, start, length, next);
      start = next;
      length = piece[at + last + 1] * 0x100000000 + (piece[at + last] >>> 0);
      line++;
    }
    this.#start = start;
    this.#length = length;
    this.#lines = line;
  }

  /** After the last line. */
  end(): void {
    if (this.#lines > 0) this.#close(this.#lines - 1, this.#start, this.#length, this.bytes);
  }

  /** The line that begins at `start` ends where the `next` begins. */
  #close(line: number, start: number, length: number, next: number): void {
    const size = next - start;
    // A token takes a digit and a comma at least, and a sample at least `{"tokens":[]}`.
    if (start < 0 || start >= this.bytes || size <= 0 || size > longestLine || length < 0 || length * 2 > size) {
      throw this.#damage(line, start, length, next);
    }
    if ((line & (blockRows - 1)) === 0) this.#blocks[line / blockRows] = start;
    this.#sizes[line] = size;
    if (length >= this.minLength) {
      if (this.#kept) this.#kept[this.#samples] = line;
      this.#lengths[this.#samples++] = length;
      this.totalTokens += length;
    } else this.#kept ??= new Uint32Array(this.rows).map((_, i) => i); // up to here none was left out
  }

  #damage(line: number, start: number, length: number, next: number): SyntaxError {
    const { path, metaPath, bytes } = this;
    if (start < 0 || start >= bytes) {
      return new SyntaxError(
        `${path} is cut off or is not the file that ${metaPath} describes: sample ${line} begins at byte ${start}, ` +
          `and the file has ${bytes} bytes`,
      );
    }
    if (next <= start) {
      return new SyntaxError(
        `${metaPath} is damaged: sample ${line + 1} at byte ${next} does not follow sample ${line} at ${start}`,
      );
    }
    return new SyntaxError(
      `${metaPath} is damaged: sample ${line} cannot hold ${length} tokens in ${next - start} bytes of ${path}`,
    );
  }

  /** First byte of a kept sample, and bytes up to the next line. */
  place(sample: number): { start: number; size: number } {
    const line = this.#kept ? this.#kept[sample] : sample, first = line - line % blockRows;
    let start = this.#blocks[first / blockRows];
    for (let before = first; before < line; before++) start += this.#sizes[before];
    return { start, size: this.#sizes[line] };
  }
}

/** See `openTokenFile`. */
export class TokenFile implements SampleSource {
  readonly lengths: Uint32Array;
  readonly totalTokens: number;
  /** Samples in the file before short ones were left out. */
  readonly samplesInFile: number;

  constructor(readonly path: string, private readonly table: LineTable) {
    this.lengths = table.lengths;
    this.totalTokens = table.totalTokens;
    this.samplesInFile = table.rows;
  }

  /** First byte of a kept sample, and bytes up to the next line. */
  place(index: number): { start: number; size: number } {
    return this.table.place(index);
  }

  read(index: number): Int32Array {
    const { start, size } = this.table.place(index);
    return readSample(this.path, start, size, this.lengths[index]);
  }
}

/**
 * The `length` signed tokens of the sample in `size` bytes from `start` on; valid until the next call. Throws `SyntaxError`
 * with file and place where they are not what stands there.
 */
export function readSample(path: string, start: number, size: number, length: number): Int32Array {
  if (lineBuffer.length < size) lineBuffer = new Uint8Array(2 ** Math.ceil(Math.log2(size)));
  const got = readAt(path, start, lineBuffer.subarray(0, size));
  if (got < size) {
    throw new SyntaxError(
      `${path} is cut off: the sample at byte ${start} ends at byte ${start + got} of ${start + size}`,
    );
  }
  if (tokenBuffer.length < length + 1) tokenBuffer = new Int32Array(2 ** Math.ceil(Math.log2(length + 1)));
  const count = parsePlainLine(lineBuffer, size, tokenBuffer, length);
  return count === length ? tokenBuffer.subarray(0, length) : readByJson(path, start, size, length);
}

/** The slow way: any JSON object with `tokens`, and all error messages. */
function readByJson(path: string, start: number, size: number, length: number): Int32Array {
  const newline = lineBuffer.subarray(0, size).indexOf(10);
  const text = new TextDecoder().decode(lineBuffer.subarray(0, newline < 0 ? size : newline));
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    const within = /position (\d+)/.exec((error as Error).message)?.[1];
    const ended = newline < 0 ? " (the line has no end: the file seems cut off)" : "";
    throw new SyntaxError(
      `${path}: bad JSON at byte ${start + Number(within ?? stoppedAt)}, in the sample that begins at byte ` +
        `${start}${ended}; does ${path}.meta belong to this file?`,
    );
  }
  const tokens = (parsed as { tokens?: unknown } | null)?.tokens;
  if (!Array.isArray(tokens) || !tokens.every((token) => Number.isInteger(token) && Math.abs(token) <= 0x7fffffff)) {
    throw new SyntaxError(
      `${path}: the sample at byte ${start} has no array of integers named "tokens": ${text.slice(0, 60)}`,
    );
  }
  if (tokens.length !== length) {
    throw new SyntaxError(
      `${path}: the sample at byte ${start} has ${tokens.length} tokens, and ${path}.meta says ${length}`,
    );
  }
  return Int32Array.from(tokens);
}

const prefix = new TextEncoder().encode('{"tokens":[');

/** Where `parsePlainLine` met something unusual, relative to the line. */
let stoppedAt = 0;

/**
 * Parses `{"tokens": [1, -2, …]}` straight from bytes, many times faster than through a string. Returns the number of
 * tokens, or −1 for anything unusual, which the caller then parses by the book.
 */
function parsePlainLine(bytes: Uint8Array, size: number, into: Int32Array, expected: number): number {
  let at = 0;
  const unusual = () => {
    stoppedAt = Math.min(at, size);
    return -1;
  };
  for (let p = 0; p < prefix.length; at++) {
    if (at >= size) return unusual();
    if (bytes[at] === prefix[p]) p++;
    else if (bytes[at] !== 32) return unusual();
  }
  let count = 0;
  while (at < size && bytes[at] === 32) at++;
  if (bytes[at] === 93) at++;
  else {
    for (;;) {
      while (at < size && bytes[at] === 32) at++;
      const negative = bytes[at] === 45;
      if (negative) at++;
      const first = at;
      let value = 0;
      while (at < size && bytes[at] >= 48 && bytes[at] <= 57) value = value * 10 + bytes[at++] - 48;
      const digits = at - first;
      if (digits === 0 || digits > 9 || (digits > 1 && bytes[first] === 48) || count >= expected) return unusual();
      into[count++] = negative ? -value : value;
      while (at < size && bytes[at] === 32) at++;
      if (at >= size) return unusual();
      const next = bytes[at++];
      if (next === 93) break;
      if (next !== 44) return unusual();
    }
  }
  if (at >= size || bytes[at++] !== 125) return unusual();
  return at === size || bytes[at] === 10 || bytes[at] === 13 ? count : unusual();
}
