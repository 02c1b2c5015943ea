/** Bytes of a file in order, decompressed on the way. */
import { Decompress } from "fzstd";
import type { ReadRange } from "./read_range.ts";

export type Compression = "none" | "gzip" | "zstd";

const pieceBytes = 1 << 18;

async function* readPieces(path: string, read: ReadRange, start: number, end: number): AsyncGenerator<Uint8Array> {
  for (let at = start; at < end;) {
    const piece = await read(path, at, Math.min(pieceBytes, end - at));
    if (piece.length === 0) throw new SyntaxError(`${path} shrank while it was read: it had ${end} bytes`);
    at += piece.length;
    yield piece;
  }
}

async function* gunzip(pieces: AsyncGenerator<Uint8Array>): AsyncGenerator<Uint8Array> {
  // Loaded for what is compressed alone: they take a twentieth of every rank's start.
  const [{ Readable }, { pipeline }, { createGunzip }] = await Promise.all([
    import("node:stream"),
    import("node:stream/promises"),
    import("node:zlib"),
  ]);
  const unzip = createGunzip();
  // An error of either reaches the reader of `unzip`, which the pipeline destroys with it.
  pipeline(Readable.from(pieces), unzip).catch(() => {});
  try {
    for await (const piece of unzip) yield piece as Uint8Array;
  } finally {
    unzip.destroy();
  }
}

/** Not by node:zlib, whose zstd stops at the end of a frame and takes a file that was cut off for whole. */
async function* unzstd(pieces: AsyncGenerator<Uint8Array>): AsyncGenerator<Uint8Array> {
  const ready: Uint8Array[] = [];
  const unzip = new Decompress((piece) => void ready.push(piece));
  for await (const piece of pieces) {
    unzip.push(piece);
    yield* ready.splice(0);
  }
  unzip.push(new Uint8Array(0), true);
  yield* ready.splice(0);
}

/**
 * The file's content from byte `start` of its content on; `start` must be 0 for compressed files. Throws `SyntaxError`
 * naming the file where it is cut off or not compressed as said.
 *
 * @param file.bytes The size on disk.
 */
export async function* readContent(
  file: { readonly path: string; readonly bytes: number; readonly compression: Compression },
  read: ReadRange,
  start = 0,
): AsyncGenerator<Uint8Array> {
  const { path, bytes, compression } = file;
  let failed: unknown; // an error of reading is not one of the content
  async function* pieces() {
    try {
      yield* readPieces(path, read, start, bytes);
    } catch (error) {
      failed = error;
      throw error;
    }
  }
  if (compression === "none") return yield* pieces();
  try {
    yield* compression === "gzip" ? gunzip(pieces()) : unzstd(pieces());
  } catch (error) {
    if (failed) throw failed;
    throw new SyntaxError(`${path} is damaged or not ${compression}: ${(error as Error).message}`, { cause: error });
  }
}
