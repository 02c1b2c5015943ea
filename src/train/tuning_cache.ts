/**
 * What the tuner found, kept from run to run: a file for each adapter in the user's cache folder. A file that cannot be
 * read, or that another version made, counts as none, and whoever asks is told. A file appears whole or not at all, so that
 * processes may write at once; what each has found is joined to what is there.
 */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { z } from "zod";
import manifest from "../../deno.json" with { type: "json" };
import type { Found } from "./tune.ts";

/** Of the files. */
const format = 1;
/** A file is no larger; a folder has no more files that are read. */
const mostBytes = 4 << 20, mostFiles = 256;

/** Choices hold for one version of the kernels and of the compiler in Deno. */
const program = `${manifest.version} on Deno ${Deno.version.deno}`;

const triedSchema = z.union([z.object({ seconds: z.number() }), z.object({ refused: z.string() })]);
const fileSchema = z.object({
  format: z.number(),
  program: z.string(),
  adapter: z.string(),
  choices: z.record(z.string(), z.object({ choice: z.string(), tried: z.record(z.string(), triedSchema) })),
});
type File = z.output<typeof fileSchema>;

/** By adapter, by question: the name of a form. What a run record holds. */
export type Tuning = Readonly<Record<string, Readonly<Record<string, string>>>>;

/** Where the files lie; `undefined` where no folder of the user is known. */
export function tuningFolder(env: (name: string) => string | undefined = Deno.env.get): string | undefined {
  const cache = env("XDG_CACHE_HOME") || (env("HOME") && join(env("HOME")!, ".cache"));
  return cache ? join(cache, "troupe", "tuning") : undefined;
}

const fileName = (adapter: string): string =>
  `${createHash("sha256").update(`${adapter}\n${program}`).digest("hex").slice(0, 20)}.json`;

/** A file's content, or undefined with a sentence on why it counts as none. */
function readFile(path: string, onNotice: (sentence: string) => void): File | undefined {
  let text: string;
  try {
    if (Deno.statSync(path).size > mostBytes) throw new RangeError(`it is larger than ${mostBytes} bytes`);
    text = Deno.readTextFileSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) {
      onNotice(
        `Choices of the tuner cannot be read from ${path}: ${(error as Error).message}; the shipped ones are taken`,
      );
    }
    return undefined;
  }
  let read: File;
  try {
    read = fileSchema.parse(JSON.parse(text));
  } catch {
    onNotice(
      `${path} is no file of the tuner, or a damaged one; the shipped choices are taken, and --retune makes it anew`,
    );
    return undefined;
  }
  if (read.format !== format || read.program !== program) {
    onNotice(`${path} was made by Troupe ${read.program}; the shipped choices are taken, and --retune makes it anew`);
    return undefined;
  }
  return read;
}

export interface TuningCache {
  /** Answers that are kept, by question. */
  readonly choices: Readonly<Record<string, Found>>;
  /** Joins answers to those that are kept. Where the folder cannot be written, says so. */
  save(found: ReadonlyMap<string, Found>): void;
}

/** What is kept of one adapter. */
export function openTuningCache(
  adapter: string,
  { folder = tuningFolder(), onNotice }: { folder?: string | undefined; onNotice: (sentence: string) => void },
): TuningCache {
  const path = folder && join(folder, fileName(adapter));
  const kept = path ? readFile(path, onNotice) : undefined;
  return {
    choices: kept?.adapter === adapter ? kept.choices : {},
    save(found) {
      if (found.size === 0) return;
      if (!path) return onNotice("The tuner's choices cannot be kept: neither XDG_CACHE_HOME nor HOME names a folder");
      // Another process may have written meanwhile.
      const there = readFile(path, () => {});
      const choices = { ...(there?.adapter === adapter ? there.choices : {}), ...Object.fromEntries(found) };
      const text = JSON.stringify({ format, program, adapter, choices } satisfies File, null, 1);
      const own = `${path}.${crypto.randomUUID()}`;
      try {
        Deno.mkdirSync(folder!, { recursive: true });
        Deno.writeTextFileSync(own, text);
        Deno.renameSync(own, path);
      } catch (error) {
        const reason = error instanceof Deno.errors.NotCapable
          ? `this task may not write there; ./troupe allows it, or TROUPE_WRITE=,${folder}`
          : (error as Error).message;
        onNotice(`The tuner's choices could not be kept in ${folder}: ${reason}; they hold for this run`);
      }
    },
  };
}

/** The choices of all adapters, for the record of a run whose ranks may have any of them. */
export function readTuning(
  { folder = tuningFolder(), onNotice }: { folder?: string | undefined; onNotice: (sentence: string) => void },
): Tuning {
  let names: string[];
  try {
    names = folder
      ? [...Deno.readDirSync(folder)].map(({ name }) => name).filter((name) => name.endsWith(".json"))
      : [];
  } catch {
    return {}; // nothing was tuned yet
  }
  const tuning: Record<string, Readonly<Record<string, string>>> = {};
  for (const name of names.sort().slice(0, mostFiles)) {
    const file = readFile(join(folder!, name), onNotice);
    if (file && fileName(file.adapter) === name) tuning[file.adapter] = chosen(file.choices);
  }
  return tuning;
}

/** Names alone. */
const chosen = (choices: Readonly<Record<string, Found>>): Record<string, string> =>
  Object.fromEntries(Object.entries(choices).map(([question, { choice }]) => [question, choice]));
