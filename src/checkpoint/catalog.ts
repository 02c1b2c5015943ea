/** Which checkpoints there are, which of them can be used, and which may go. */
import { createHash } from "node:crypto";
import { basename, join } from "node:path";
import { Checkpoint, CheckpointError, readManifest } from "./checkpoint.ts";
import { fileError } from "./durable.ts";
import { CHECKPOINT_NAME, type Manifest, temporaryName } from "./manifest.ts";

export interface CatalogEntry {
  readonly directory: string;
  readonly step: number;
  /** `complete`: marked, with every file there and of the right size. Only `verifyCheckpoint` reads their content. */
  readonly status: "complete" | "torn" | "corrupt";
  /** A sentence, unless complete. */
  readonly reason?: string;
}

/** Looks at one folder without reading its shards. */
function inspect(directory: string, step: number): CatalogEntry {
  try {
    const manifest = readManifest(directory);
    if (manifest.step === step) return { directory, step, status: "complete" };
    const reason = `Checkpoint ${directory} is corrupt: it holds step ${manifest.step}`;
    return { directory, step, status: "corrupt", reason };
  } catch (error) {
    const status = error instanceof CheckpointError ? error.status : "corrupt";
    return { directory, step, status, reason: (error as Error).message };
  }
}

/**
 * Checkpoint folders, newest first; at the same step a complete one first, then in the order of the folders given.
 * A folder that does not exist holds none.
 *
 * @param folders `save_ckpt_folder`, or several, such as that and the snapshots'
 */
export function listCheckpoints(folders: string | readonly string[]): CatalogEntry[] {
  const entries: CatalogEntry[] = [];
  for (const folder of new Set(typeof folders === "string" ? [folders] : folders)) {
    try {
      for (const { name, isDirectory, isSymlink } of Deno.readDirSync(folder)) {
        const match = CHECKPOINT_NAME.exec(name);
        if (match !== null && (isDirectory || isSymlink)) entries.push(inspect(join(folder, name), Number(match[1])));
      }
    } catch (error) {
      if (!(error instanceof Deno.errors.NotFound)) throw fileError("list checkpoints in", folder, error);
    }
  }
  const late = (entry: CatalogEntry) => (entry.status === "complete" ? 0 : 2) + (isTemporary(entry) ? 1 : 0);
  return entries.sort((a, b) => b.step - a.step || late(a) - late(b));
}

function isTemporary({ directory }: CatalogEntry): boolean {
  return basename(directory).includes(".tmp-");
}

/**
 * Checks every byte of a checkpoint against its hashes, at about the speed of SHA-256 (1.7 GB/s).
 *
 * @returns its manifest
 * @throws {CheckpointError} saying which file is torn or altered
 */
export async function verifyCheckpoint(directory: string): Promise<Manifest> {
  const manifest = readManifest(directory);
  const buffer = new Uint8Array(4 << 20);
  for (const { file, sha256 } of manifest.files) {
    const path = join(directory, file);
    const hash = createHash("sha256");
    try {
      using opened = await Deno.open(path);
      for (let count; (count = await opened.read(buffer)) !== null;) hash.update(buffer.subarray(0, count));
    } catch (error) {
      throw fileError("verify checkpoint file", path, error);
    }
    if (hash.digest("hex") !== sha256) {
      throw new CheckpointError(
        `Checkpoint ${directory} is corrupt: ${file} is not what was committed (its SHA-256 differs)`,
        "corrupt",
      );
    }
  }
  return manifest;
}

/**
 * Opens the newest checkpoint that is whole, skipping aloud what is torn, truncated or altered.
 *
 * @param options.onSkipped gets a sentence for each one skipped. @default prints it to standard error
 * @param options.accept looks at each one's manifest first; those refused are passed over in silence. @default all
 * @param options.verify check hashes; a rank that was given a verified folder opens it with `openCheckpoint`. @default {true}
 * @returns undefined when there is none
 */
export async function newestUsable(
  folders: string | readonly string[],
  options: {
    readonly onSkipped?: (sentence: string, directory: string) => void;
    readonly accept?: (manifest: Manifest) => boolean;
    readonly verify?: boolean;
  } = {},
): Promise<Checkpoint | undefined> {
  const { onSkipped = (sentence) => console.error(sentence), accept = () => true, verify = true } = options;
  for (const { directory, status, reason } of listCheckpoints(folders)) {
    try {
      if (status !== "complete") throw new Error(reason);
      if (!accept(readManifest(directory))) continue;
      if (verify) await verifyCheckpoint(directory);
      return Checkpoint.open(directory);
    } catch (error) {
      onSkipped(`Skipped: ${(error as Error).message}`, directory);
    }
  }
  return undefined;
}

export interface Retired {
  readonly removed: readonly string[];
  /** A sentence for each folder that could not be removed; that never stops a run. */
  readonly failed: readonly string[];
}

/**
 * Removes all but the newest complete checkpoints, and what interrupted saves left behind up to the newest of them.
 * Folders that are not ours, such as another program's `{step}` without a commit mark, are left alone; so are corrupt
 * ones newer than the last kept, for people to look at. To be called by the one who commits, between saves.
 *
 * @param keepLast how many complete ones stay, at least 1; `Infinity` keeps all
 * @param options.upTo the step just committed. Later ones, of a run that went on from there before this one was started
 * from an earlier checkpoint, are then neither counted nor removed. @default the newest
 */
export async function retireOld(
  folder: string,
  keepLast: number,
  options: { readonly upTo?: number } = {},
): Promise<Retired> {
  if (!(keepLast >= 1)) {
    throw new RangeError(`Cannot retire checkpoints: keepLast must be at least 1: current value is ${keepLast}`);
  }
  const { upTo = Infinity } = options;
  const entries = listCheckpoints(folder).filter(({ step }) => step <= upTo);
  const complete = entries.filter(({ status }) => status === "complete");
  // A save killed while it replaced one of the same step leaves two of that step; one of them is enough.
  const distinct = complete.filter(({ step }, i) => step !== complete[i - 1]?.step);
  const kept = distinct.slice(0, keepLast);
  const newest = kept.at(0)?.step ?? -1;
  const oldest = kept.at(-1)?.step ?? -1;
  const removed: string[] = [];
  const failed: string[] = [];
  for (const entry of entries) {
    const goes = entry.status === "complete"
      ? !kept.includes(entry)
      : entry.status === "torn"
      ? isTemporary(entry) && entry.step <= newest
      : distinct.length > keepLast && entry.step < oldest;
    if (!goes) continue;
    try {
      // Named as a leftover first, so that a removal which stops half-way is finished by the next.
      const path = isTemporary(entry) ? entry.directory : join(folder, temporaryName(entry.step));
      if (path !== entry.directory) await Deno.rename(entry.directory, path);
      await Deno.remove(path, { recursive: true });
      removed.push(entry.directory);
    } catch (error) {
      failed.push(fileError("remove old checkpoint", entry.directory, error).message);
    }
  }
  return { removed, failed };
}
