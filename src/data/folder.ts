/** Finding tokenized files below a folder, and the kind of data that each holds. */
import { basename, join } from "node:path";

/** A directory with `.bin` files directly in it. */
export interface TokenFolder {
  readonly path: string;
  /** Names of the `.bin` files, sorted. */
  readonly files: readonly string[];
}

function readDirectory(path: string, what: string): Deno.DirEntry[] {
  try {
    return [...Deno.readDirSync(path)].sort((a, b) => a.name < b.name ? -1 : 1);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotADirectory) {
      throw new Deno.errors.NotFound(`${what} ${path} is not a folder. \`troupe tokenize\` makes one from text`);
    }
    throw error;
  }
}

/**
 * All folders at and below `root` that hold `.bin` files, in a fixed order: a folder before its sub-folders, names sorted.
 * Symbolic links are followed, each real folder once. Throws `Deno.errors.NotFound` when `root` is no folder.
 */
export function walkTokenFolders(root: string, what = "data folder"): TokenFolder[] {
  const folders: TokenFolder[] = [];
  const seen = new Set<string>();
  const visit = (path: string) => {
    const entries = readDirectory(path, what);
    const real = Deno.realPathSync(path);
    if (seen.has(real)) return;
    seen.add(real);
    const directories: string[] = [];
    const files: string[] = [];
    for (const entry of entries) {
      const isDirectory = entry.isSymlink ? isDirectoryBehind(join(path, entry.name)) : entry.isDirectory;
      if (isDirectory) directories.push(entry.name);
      else if (entry.name.endsWith(".bin")) files.push(entry.name);
    }
    if (files.length > 0) folders.push({ path, files });
    for (const name of directories) visit(join(path, name));
  };
  visit(root);
  return folders;
}

function isDirectoryBehind(link: string): boolean {
  try {
    return Deno.statSync(link).isDirectory;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false; // a dangling link
    throw error;
  }
}

/** Type of every sub-folder of a training folder: sorted names → 0, 1, 2 …. */
export function datasetTypes(trainFolder: string): Map<string, number> {
  const names = readDirectory(trainFolder, "data.train_folder")
    .filter((entry) => entry.isSymlink ? isDirectoryBehind(join(trainFolder, entry.name)) : entry.isDirectory)
    .map((entry) => entry.name);
  return new Map(names.map((name, id) => [name, id]));
}

/**
 * Type of the file at `path`: that of the single key which is one of its folders, leading `z` and `_` ignored (they sort
 * late additions last). Throws `RangeError` when no key or more than one matches.
 */
export function typeIdOfPath(path: string, types: ReadonlyMap<string, number>): number {
  const matches = [...types].filter(([key]) => {
    const escaped = key.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp(`/[z_]*${escaped}/`).test(path);
  });
  if (matches.length !== 1) {
    const found = matches.map(([key]) => key).join(", ") || "none";
    throw new RangeError(
      `The type of ${path} is not clear: exactly one of its folders should be among ${[...types.keys()].join(", ")}; ` +
        `found ${found}`,
    );
  }
  return matches[0][1];
}

/**
 * Least length of the samples to keep from `path`: that of the key in `byPath` which is part of the path, else `general`.
 * Throws `RangeError` when several keys are.
 */
export function minLengthFor(path: string, general = 0, byPath?: Readonly<Record<string, number>> | null): number {
  const keys = Object.keys(byPath ?? {}).filter((key) => path.includes(key));
  if (keys.length > 1) {
    throw new RangeError(`data.min_length_dict: ${path} matches more than one key: ${keys.join(", ")}`);
  }
  return keys.length === 1 ? byPath![keys[0]] : general;
}

/** Name of a validation set: its folder's name, or the path from `root` where another set has the same name. */
export function validationSetNames(root: string, folders: readonly TokenFolder[]): string[] {
  const short = folders.map((folder) => basename(folder.path));
  return short.map((name, i) =>
    short.indexOf(name) === short.lastIndexOf(name)
      ? name
      : folders[i].path.slice(root.length).replace(/^\/+/, "") || name
  );
}
