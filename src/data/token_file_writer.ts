/** Writing tokenized files (see `token_file.ts`). */
import { dirname } from "node:path";
import { type EncodedLines, formatSample } from "./encode_chunks.ts";
import { npyHeader } from "./npy.ts";

/** How far a file has come: what is needed to go on with it. */
export interface Written {
  readonly samples: number;
  readonly tokens: number;
  readonly bytes: number;
}

export interface TokenFileWriter {
  readonly path: string;
  readonly samples: number;
  readonly tokens: number;
  write(tokens: ArrayLike<number>): void;
  /** Adds lines as they are. */
  append(lines: Pick<EncodedLines, "bytes" | "sizes" | "lengths">): void;
  /** Puts what was written on the disk, and says how much it is. */
  sync(): Written;
  /** Puts `NAME.bin` and `NAME.bin.meta` in place. Before this, neither is to be seen under its name. */
  finish(): void;
  /** Closes, and leaves what was written for another writer to go on with. */
  keep(): void;
  /** Leaves nothing behind, unless `finish` or `keep` was called. */
  [Symbol.dispose](): void;
}

export function fileExists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    if (error instanceof Deno.errors.NotADirectory) {
      throw new Deno.errors.NotADirectory(`Cannot write to ${path}: a part of the path is a file, not a folder`);
    }
    throw error;
  }
}

/** Runs `write`, naming the file where the system does not (a full disk has no path in its message). */
export function naming<T>(path: string, write: () => T): T {
  try {
    return write();
  } catch (error) {
    throw new Error(`Writing ${path} failed: ${(error as Error).message}`, { cause: error });
  }
}

/** Refuses to write over existing output unless told to, with what else would work. Throws `Deno.errors.AlreadyExists`. */
export function refuseExisting(paths: readonly string[], overwrite: boolean, otherwise = "another place"): void {
  const existing = paths.filter(fileExists);
  if (existing.length > 0 && !overwrite) {
    throw new Deno.errors.AlreadyExists(
      `${existing.join(", ")} exists already and is left alone; ${otherwise}, or --overwrite, would work`,
    );
  }
}

/** Where a file stands until it is finished. */
const partialPaths = (path: string) => ({ bin: `${path}.partial`, meta: `${path}.partial.meta` });

/** Bytes of an offset table's header: the usual size, so that it can be written before the number of rows is known. */
const headerBytes = 128;

/** Whether what `written` says is there to go on from. */
export function hasWritten(path: string, { samples, bytes }: Written): boolean {
  const partial = partialPaths(path), size = (path: string) => fileExists(path) ? Deno.statSync(path).size : 0;
  return size(partial.bin) >= bytes && size(partial.meta) >= headerBytes + 16 * samples;
}

/** A file that is written piece by piece, by this process alone. */
function openOutput(path: string, keepBytes: number) {
  const file = naming(path, () => {
    Deno.mkdirSync(dirname(path), { recursive: true });
    const file = Deno.openSync(path, { read: true, write: true, create: true });
    if (!file.tryLockSync(true)) {
      file.close();
      throw new Deno.errors.AlreadyExists("another process writes there; another --name would work");
    }
    file.truncateSync(keepBytes);
    file.seekSync(0, Deno.SeekMode.End);
    return file;
  });
  let pending: Uint8Array[] = [], pendingBytes = 0;
  const flush = () =>
    naming(path, () => {
      for (const bytes of pending) for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
      pending = [];
      pendingBytes = 0;
    });
  return {
    write(bytes: Uint8Array) {
      pending.push(bytes);
      if ((pendingBytes += bytes.length) > 1 << 20) flush();
    },
    sync() {
      flush();
      naming(path, () => file.syncDataSync());
    },
    overwriteStart(bytes: Uint8Array) {
      naming(path, () => {
        file.seekSync(0, Deno.SeekMode.Start);
        file.writeSync(bytes);
      });
    },
    close: () => file.close(),
  };
}

/**
 * Begins `path` (ending in `.bin`) and its `.meta`, making the folder; or goes on after what `from` says was written.
 * Throws `Deno.errors.AlreadyExists` where one is there and `overwrite` is not set, and where another process is at it.
 */
export function createTokenFile(
  path: string,
  options: { overwrite?: boolean; from?: Written } = {},
): TokenFileWriter {
  if (!path.endsWith(".bin")) throw new RangeError(`A tokenized file ends in .bin; got ${path}`);
  refuseExisting([path, path + ".meta"], options.overwrite ?? false);
  const from = options.from ?? { samples: 0, tokens: 0, bytes: 0 }, partial = partialPaths(path);
  const table = openOutput(partial.meta, options.from ? headerBytes + 16 * from.samples : 0);
  let bin: ReturnType<typeof openOutput>;
  try {
    bin = openOutput(partial.bin, from.bytes);
  } catch (error) {
    table.close();
    throw error;
  }
  if (!options.from) table.write(new Uint8Array(headerBytes));
  let { samples, tokens: tokenCount, bytes: offset } = from, open = true;
  const close = () => {
    if (open) {
      bin.close();
      table.close();
    }
    open = false;
  };
  const append: TokenFileWriter["append"] = ({ bytes, sizes, lengths }) => {
    const rows = new DataView(new ArrayBuffer(16 * sizes.length));
    for (let i = 0; i < sizes.length; i++) {
      rows.setBigInt64(16 * i, BigInt(offset), true);
      rows.setBigInt64(16 * i + 8, BigInt(lengths[i]!), true);
      offset += sizes[i]!;
      tokenCount += lengths[i]!;
    }
    samples += sizes.length;
    bin.write(bytes);
    table.write(new Uint8Array(rows.buffer));
  };
  return {
    path,
    get samples() {
      return samples;
    },
    get tokens() {
      return tokenCount;
    },
    write(tokens) {
      const bytes = formatSample(tokens);
      append({ bytes, sizes: Uint32Array.of(bytes.length), lengths: Uint32Array.of(tokens.length) });
    },
    append,
    sync() {
      bin.sync();
      table.sync();
      return { samples, tokens: tokenCount, bytes: offset };
    },
    finish() {
      const header = npyHeader("<i8", samples, 2);
      if (header.length !== headerBytes) throw new RangeError(`${samples} samples are too many for one file`);
      table.sync();
      table.overwriteStart(header);
      table.sync();
      bin.sync();
      close();
      Deno.renameSync(partial.meta, path + ".meta");
      Deno.renameSync(partial.bin, path);
    },
    keep: close,
    [Symbol.dispose]() {
      if (!open) return;
      close();
      for (const left of Object.values(partial)) if (fileExists(left)) Deno.removeSync(left);
    },
  };
}
