/**
 * Tokenized files: `NAME.bin` holds one JSON object a line with a `tokens` array; `NAME.bin.meta` is an NPY matrix of
 * (byte offset, token count) a line. Only the offset table is kept in memory; samples are read in place, on demand.
 */
import { parseNpyHeader } from "./npy.ts";

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
  const minLength = options.minLength ?? 0;
  const starts = new Float64Array(rows), sizes = new Uint32Array(rows), lengths = new Uint32Array(rows);
  let kept = 0, totalTokens = 0, start = 0, length = 0;
  /** What is wrong with the sample before the one that begins at `end`. */
  const damage = (row: number, end: number): SyntaxError => {
    if (start < 0 || start >= bytes) {
      return new SyntaxError(
        `${path} is cut off or is not the file that ${metaPath} describes: sample ${row} begins at byte ${start}, ` +
          `and the file has ${bytes} bytes`,
      );
    }
    if (end <= start) {
      return new SyntaxError(
        `${metaPath} is damaged: sample ${row + 1} at byte ${end} does not follow sample ${row} at ${start}`,
      );
    }
    return new SyntaxError(
      `${metaPath} is damaged: sample ${row} cannot hold ${length} tokens in ${end - start} bytes of ${path}`,
    );
  };
  // Piece by piece and in one loop without calls: a table may have tens of millions of rows.
  meta.seekSync(dataStart, Deno.SeekMode.Start);
  const wide = type === "<i8", words = columns * (wide ? 2 : 1), last = words - (wide ? 2 : 1);
  const pieceRows = Math.max(1, Math.min(rows, Math.floor((1 << 18) / words))),
    buffer = new Int32Array(pieceRows * words);
  for (let row = 0; row <= rows; row += pieceRows) {
    const piece = buffer.subarray(0, Math.min(pieceRows, rows - row) * words);
    readFully(meta, new Uint8Array(piece.buffer, 0, piece.byteLength), metaPath);
    const stop = row + pieceRows > rows ? rows + 1 : row + pieceRows;
    for (let r = row, at = 0; r < stop; r++, at += words) {
      const end = r === rows ? bytes : wide ? piece[at + 1] * 0x100000000 + (piece[at] >>> 0) : piece[at];
      if (r > 0) {
        const size = end - start;
        // A token takes a digit and a comma at least, and a sample at least `{"tokens":[]}`.
        if (start < 0 || start >= bytes || size <= 0 || size > longestLine || length < 0 || length * 2 > size) {
          throw damage(r - 1, end);
        }
        if (length >= minLength) {
          starts[kept] = start;
          sizes[kept] = size;
          lengths[kept++] = length;
          totalTokens += length;
        }
      }
      if (r === rows) break;
      start = end;
      length = wide ? piece[at + last + 1] * 0x100000000 + (piece[at + last] >>> 0) : piece[at + last];
    }
  }
  return new TokenFile(
    path,
    starts.subarray(0, kept),
    sizes.subarray(0, kept),
    lengths.subarray(0, kept),
    totalTokens,
    rows,
  );
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

/** See `openTokenFile`. */
export class TokenFile implements SampleSource {
  constructor(
    readonly path: string,
    /** First byte of each kept sample. */
    readonly offsets: Float64Array,
    /** Bytes up to the next sample. */
    readonly sizes: Uint32Array,
    readonly lengths: Uint32Array,
    readonly totalTokens: number,
    /** Samples in the file before short ones were left out. */
    readonly samplesInFile: number,
  ) {}

  read(index: number): Int32Array {
    return readSample(this.path, this.offsets[index], this.sizes[index], this.lengths[index]);
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
