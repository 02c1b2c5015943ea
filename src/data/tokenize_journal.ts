/**
 * How far an unfinished run of `troupe tokenize` has come, in a file beside its output: the same command goes on from
 * there after a kill, and writes the very bytes that an undisturbed run would.
 */
import { createHash } from "node:crypto";
import type { TextFile } from "./documents.ts";
import type { Written } from "./token_file_writer.ts";

/** What a set's summary is made of. */
export interface Tally {
  readonly lengthHistogram: number[];
  shortest: number;
  longest: number;
  /** Occurrences of each id. */
  readonly counts: Float64Array;
}

export interface JournalSet {
  readonly written: Written;
  readonly tally: Tally;
}

/** A place between two documents, and what was written up to it. */
export interface Journal {
  /** Files that are done. */
  readonly file: number;
  /** Documents of the next file that are done. */
  readonly inFile: number;
  /** Documents of all files that are done. */
  readonly documents: number;
  readonly sets: readonly JournalSet[];
}

/** What must be the same for a run to go on: the settings, the tokenizer, and the files with their sizes and dates. */
export function fingerprint(settings: object, tokenizerPath: string, files: readonly TextFile[]): string {
  const hash = createHash("sha256").update(JSON.stringify(settings)).update(Deno.readFileSync(tokenizerPath));
  for (const { path, bytes } of files) hash.update(`\0${path}\0${bytes}\0${Deno.statSync(path).mtime?.getTime()}`);
  return hash.digest("hex");
}

/** Replaces the journal as a whole, so that a kill leaves the old one or the new one. */
export function writeJournal(path: string, identity: string, journal: Journal): void {
  const sets = journal.sets.map(({ written, tally: { counts, shortest, ...tally } }) => ({
    written,
    tally: { ...tally, shortest: Number.isFinite(shortest) ? shortest : null, counts: [...counts] },
  }));
  const attempt = `${path}.new`;
  {
    using file = Deno.openSync(attempt, { write: true, create: true, truncate: true });
    const bytes = new TextEncoder().encode(JSON.stringify({ version: 1, identity, ...journal, sets }));
    for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
    file.syncDataSync();
  }
  Deno.renameSync(attempt, path);
}

/** The journal at `path`; undefined where there is none, and a reason where it cannot be gone on from. */
export function readJournal(path: string, identity: string): Journal | { readonly unfit: string } | undefined {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
  try {
    const journal = JSON.parse(text) as Journal & { version: number; identity: string };
    if (journal.version !== 1) return { unfit: "it is of another version of this program" };
    if (journal.identity !== identity) return { unfit: "its files, its tokenizer or its settings were others" };
    const sets = journal.sets.map(({ written, tally }) => ({
      written,
      tally: {
        ...tally,
        shortest: (tally.shortest as number | null) ?? Infinity,
        counts: Float64Array.from(tally.counts),
      },
    }));
    return { ...journal, sets };
  } catch (error) {
    return { unfit: `${path} cannot be read: ${(error as Error).message}` };
  }
}
