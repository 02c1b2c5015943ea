/**
 * Tables of where samples are, shared by the ranks of one host (`data.use_shm`). Processes share no memory that JavaScript
 * could reach, but files in `/dev/shm` lie in memory once for all: the first rank writes one table for the whole set, in
 * the shuffled order, and every rank reads the few records that a row needs.
 *
 * A table is taken for what it is only with the sizes and dates of all files that it was made from. Ranks keep a lock on
 * it while they use it, which ends with the process, however it ends; the last to close removes it.
 */
import { createHash } from "node:crypto";
import { join, resolve } from "node:path";
import { shuffledOrder, type Tape } from "./packed_dataset.ts";
import { openTokenFile, readSample } from "./token_file.ts";

/**
 * Where the ranks of a run share tables. Deno lets nobody write below `/dev` who may not do everything; there they are in
 * the run's folder instead, from where the system keeps them in memory as well, once for all processes.
 */
export const sharedTablesFolder = (shmPath: string, runFolder: string): string =>
  resolve(shmPath).startsWith("/dev/") ? join(resolve(runFolder), "tables") : resolve(shmPath);

export interface SharedFile {
  readonly path: string;
  readonly minLength: number;
}

export interface SharedTables {
  /** One for each file. */
  readonly tapes: readonly Tape[];
  /** Whether this call made the table, instead of finding it. */
  readonly made: boolean;
  close(): void;
}

interface Section {
  readonly samples: number;
  readonly tokens: number;
  /** Where its records begin. */
  readonly at: number;
}

const version = 1;
/** A record: tokens up to and with the sample, first byte, bytes, tokens. */
const recordBytes = 24;
const pageRecords = 2048, keptPages = 64;

function identityOf(files: readonly SharedFile[]): string {
  const hash = createHash("sha256").update(`troupe ${version}`);
  for (const { path, minLength } of files) {
    for (const name of [path, path + ".meta"]) {
      try {
        const { size, mtime } = Deno.statSync(name);
        hash.update(`\0${resolve(name)}\0${size}\0${mtime?.getTime()}\0${minLength}`);
      } catch (error) {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
        openTokenFile(path); // says what is missing
      }
    }
  }
  return hash.digest("hex");
}

function writeFully(file: Deno.FsFile, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
}

/** Writes the table under another name, then puts it in place. */
function makeTable(path: string, identity: string, files: readonly SharedFile[]): void {
  const attempt = `${path}.new`;
  try {
    using file = Deno.openSync(attempt, { write: true, create: true, truncate: true });
    const sections: Section[] = [];
    let at = 8;
    file.seekSync(at, Deno.SeekMode.Start);
    for (const { path, minLength } of files) {
      const source = openTokenFile(path, { minLength }), { order, ends } = shuffledOrder(source);
      sections.push({ samples: order.length, tokens: source.totalTokens, at });
      for (let first = 0; first < order.length; first += pageRecords) {
        const count = Math.min(pageRecords, order.length - first), bytes = new ArrayBuffer(count * recordBytes);
        const doubles = new Float64Array(bytes), words = new Uint32Array(bytes);
        for (let i = 0; i < count; i++) {
          const sample = order[first + i]!, { start, size } = source.place(sample);
          doubles[3 * i] = ends[first + i]!;
          doubles[3 * i + 1] = start;
          words[6 * i + 4] = size;
          words[6 * i + 5] = source.lengths[sample]!;
        }
        writeFully(file, new Uint8Array(bytes));
      }
      at += order.length * recordBytes;
    }
    // What it holds stands at its end, and where that begins at its beginning.
    writeFully(file, new TextEncoder().encode(JSON.stringify({ identity, sections })));
    file.seekSync(0, Deno.SeekMode.Start);
    writeFully(file, new Uint8Array(Float64Array.of(at).buffer));
    Deno.renameSync(attempt, path);
  } catch (error) {
    try {
      Deno.removeSync(attempt);
    } catch { /* it was not begun */ }
    throw error;
  }
}

function readAt(file: Deno.FsFile, offset: number, bytes: Uint8Array): number {
  file.seekSync(offset, Deno.SeekMode.Start);
  let filled = 0;
  while (filled < bytes.length) {
    const count = file.readSync(bytes.subarray(filled));
    if (count === null) break;
    filled += count;
  }
  return filled;
}

/** What the table holds; undefined where it is another's, or damaged. */
function sectionsOf(file: Deno.FsFile, identity: string, files: number): readonly Section[] | undefined {
  const { size } = file.statSync(), start = new Float64Array(1);
  if (readAt(file, 0, new Uint8Array(start.buffer)) < 8) return undefined;
  const at = start[0]!;
  if (!(Number.isInteger(at) && at >= 8 && at < size && size - at < 2 ** 28)) return undefined;
  const bytes = new Uint8Array(size - at);
  readAt(file, at, bytes);
  try {
    const found = JSON.parse(new TextDecoder().decode(bytes)) as { identity: string; sections: Section[] };
    return found.identity === identity && found.sections.length === files ? found.sections : undefined;
  } catch {
    return undefined;
  }
}

/** The records of one file. */
function tapeOf(path: string, table: Deno.FsFile, { samples, tokens, at }: Section): Tape {
  const pages = new Map<number, ArrayBuffer>();
  const page = (k: number): ArrayBuffer => {
    const number = Math.floor(k / pageRecords);
    let found = pages.get(number);
    if (found) pages.delete(number); // inserted again below: the map's order is the order of use
    else {
      if (pages.size >= keptPages) pages.delete(pages.keys().next().value!);
      const count = Math.min(pageRecords, samples - number * pageRecords);
      found = new ArrayBuffer(count * recordBytes);
      const got = readAt(table, at + number * pageRecords * recordBytes, new Uint8Array(found));
      if (got < found.byteLength) throw new SyntaxError(`The shared table of ${path} was cut off while it was in use`);
    }
    pages.set(number, found);
    return found;
  };
  const end = (k: number) => new Float64Array(page(k))[3 * (k % pageRecords)]!;
  return {
    path,
    samples,
    tokens,
    end,
    read(k) {
      const bytes = page(k), i = k % pageRecords, words = new Uint32Array(bytes);
      return readSample(path, new Float64Array(bytes)[3 * i + 1]!, words[6 * i + 4]!, words[6 * i + 5]!);
    },
  };
}

/**
 * Opens the table of `files` in `shmPath`, and makes it where there is none that fits. Whoever comes while it is made waits.
 * Throws as `openTokenFile` does, and where `shmPath` cannot be written to.
 */
export function openSharedTables(shmPath: string, files: readonly SharedFile[]): SharedTables {
  const identity = identityOf(files),
    name = createHash("sha256").update(files.map(({ path }) => resolve(path)).join("\0"));
  const path = join(shmPath, `${name.digest("hex").slice(0, 24)}.table`);
  const locked = <T>(run: () => T): T => {
    let lock: Deno.FsFile;
    try {
      Deno.mkdirSync(shmPath, { recursive: true });
      lock = Deno.openSync(join(shmPath, ".lock"), { write: true, create: true });
    } catch (error) {
      throw new Error(`data.shm_path ${shmPath} cannot be written to: ${(error as Error).message}`, { cause: error });
    }
    try {
      lock.lockSync(true);
      return run();
    } finally {
      lock.close();
    }
  };
  const open = () => {
    try {
      return Deno.openSync(path, { read: true });
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  };
  const { table, sections, made } = locked(() => {
    let table = open(), sections = table && sectionsOf(table, identity, files.length);
    const made = sections === undefined;
    if (made) {
      table?.close();
      makeTable(path, identity, files);
      table = open()!;
      sections = sectionsOf(table, identity, files.length)!;
    }
    table!.lockSync(false);
    return { table: table!, sections: sections!, made };
  });
  let closed = false;
  return {
    made,
    tapes: sections.map((section, i) => tapeOf(files[i]!.path, table, section)),
    close() {
      if (closed) return;
      closed = true;
      table.close();
      locked(() => {
        const left = open();
        if (!left) return;
        const last = left.tryLockSync(true);
        left.close();
        if (last) Deno.removeSync(path);
      });
    },
  };
}
