/** The files of a streaming data set: which there are, and what is read from each. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import type { Compression } from "./decompress.ts";
import { readLineRows } from "./line_rows.ts";
import { type ReadParquetOptions, readParquetRows } from "./parquet_rows.ts";

export interface RowFile {
  readonly path: string;
  /** From the data set's folder on, for the identity of the data set. */
  readonly name: string;
  readonly format: "json" | "text" | "parquet";
  readonly compression: Compression;
  /** Size on disk. */
  readonly bytes: number;
}

/** Where reading a file goes on. */
export interface Place {
  /** Rows (lines, in text) before it. */
  readonly row: number;
  /** Bytes before it, in plain lines; else 0. */
  readonly byte: number;
}

/** A document, or what is wrong with a row that should hold one; and the place after it. */
export type Row =
  | { readonly text: string; readonly where: string; readonly place: Place; readonly problem?: never }
  | { readonly problem: string; readonly place: Place };

const formats: Readonly<Record<string, RowFile["format"]>> = {
  jsonl: "json",
  json: "json",
  ndjson: "json",
  txt: "text",
  parquet: "parquet",
};

/** What files can be read, for messages. */
const rowFileKinds = ".parquet, and .jsonl, .json, .ndjson and .txt, the latter also as .gz or .zst";

/** How a file is read, by its name; undefined for files of other kinds. */
export function rowFileKind(name: string): Pick<RowFile, "format" | "compression"> | undefined {
  const match = /\.(jsonl|json|ndjson|txt|parquet)(?:\.(gz|zst))?$/.exec(name);
  if (!match || (match[1] === "parquet" && match[2])) return undefined;
  return {
    format: formats[match[1]!]!,
    compression: match[2] === "gz" ? "gzip" : match[2] === "zst" ? "zstd" : "none",
  };
}

/** Files of a data set that hold no rows. */
const otherFiles = /^(dataset_infos?|dataset_dict|state|config|tokenizer|tokenizer_config|special_tokens_map)\.json$/;

/** As Hugging Face's libraries tell splits apart: a word of the path. */
const word = (names: string) => new RegExp(`(^|[^a-zA-Z])(${names})([^a-zA-Z]|$)`);
const trainWord = word("train|training"), otherWord = word("test|testing|eval|evaluation|valid|validation|val|dev");

/**
 * The files of the split "train" at and below `folder`, in the order of their names. Where files or folders are named
 * for splits, those named train; else all but those named for another split. Throws `Deno.errors.NotFound` when the
 * folder is missing, and `RangeError` when it holds no such files.
 */
export function listRowFiles(folder: string): RowFile[] {
  const files: RowFile[] = [];
  const visit = (path: string, name: string, above: readonly string[]) => {
    const real = Deno.realPathSync(path);
    if (above.includes(real)) return; // a link to a folder around it
    const entries = [...Deno.readDirSync(path)].sort((a, b) => a.name < b.name ? -1 : 1);
    for (const entry of entries) {
      if (entry.name.startsWith(".")) continue;
      const inside = join(path, entry.name), insideName = name + entry.name;
      const info = Deno.statSync(inside);
      if (info.isDirectory) visit(inside, insideName + "/", [...above, real]);
      else {
        const kind = rowFileKind(entry.name);
        if (!kind || otherFiles.test(entry.name) || info.size === 0) continue;
        files.push({ path: inside, name: insideName, ...kind, bytes: info.size });
      }
    }
  };
  try {
    visit(folder, "", []);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) {
      throw new Deno.errors.NotFound(`The data folder ${folder} is missing or incomplete: ${error.message}`);
    }
    throw error;
  }
  const named = files.filter(({ name }) => trainWord.test(name));
  const train = named.length > 0 ? named : files.filter(({ name }) => !otherWord.test(name));
  if (train.length === 0) {
    throw new RangeError(`The data folder ${folder} holds nothing to stream; ${rowFileKinds} would work`);
  }
  return train;
}

/** Changes when a file is added, taken away, renamed or of another size. */
export function hashRowFiles(files: readonly RowFile[]): string {
  const hash = createHash("sha256");
  for (const { name, bytes } of files) hash.update(`${name}\0${bytes}\n`);
  return hash.digest("hex").slice(0, 32);
}

/** All rows of a file from a place on. */
export function readRows(
  file: RowFile,
  options: ReadParquetOptions,
): AsyncGenerator<Row> {
  return file.format === "parquet" ? readParquetRows(file, options) : readLineRows(file, options);
}
