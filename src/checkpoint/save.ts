/**
 * Saving in three acts, so that many writers can take part: the coordinator begins (a temporary folder), each writer
 * writes one shard into it, the coordinator commits. Until the commit mark is durable there is no checkpoint, and those
 * before it are never touched: killed at any moment, a save leaves either all or nothing.
 */
import { basename, dirname, join } from "node:path";
import { boxFault } from "./box.ts";
import { fileError, sha256Hex, syncDirectory, writeTextDurably } from "./durable.ts";
import {
  checkCover,
  COMMIT_FILE,
  entryKey,
  type EntryKind,
  FORMAT_VERSION,
  type GlobalTensor,
  type Json,
  type Manifest,
  MANIFEST_FILE,
  requirePlainJson,
  type ShardReport,
  type StoredBox,
  temporaryName,
} from "./manifest.ts";
import { writeSafetensors } from "./safetensors.ts";

/**
 * Makes the temporary folder of one save.
 *
 * @param folder `save_ckpt_folder`, created when missing
 * @returns the folder that writers are to be given
 */
export async function beginCheckpoint(folder: string, step: number): Promise<string> {
  if (!Number.isSafeInteger(step) || step < 0) {
    throw new RangeError(`Cannot save a checkpoint: step must be an integer from 0: current value is ${step}`);
  }
  const directory = join(folder, temporaryName(step));
  try {
    await Deno.mkdir(directory, { recursive: true });
  } catch (error) {
    throw fileError("make checkpoint folder", directory, error);
  }
  return directory;
}

/** One box to store, row-major: at once, or in pieces as the writer gets there (from a GPU, say). */
export interface ShardEntry extends StoredBox {
  readonly data: Float32Array | (() => Iterable<Float32Array> | AsyncIterable<Float32Array>);
}

/** A whole tensor as one entry. */
export function wholeEntry(
  kind: EntryKind,
  name: string,
  shape: readonly number[],
  data: ShardEntry["data"],
): ShardEntry {
  return { kind, name, shape, offset: shape.map(() => 0), extent: shape, data };
}

/**
 * Writes one writer's shard and makes it durable; hashes while writing. A failed write removes the file.
 *
 * @param writer its number among the writers, or a name of letters, digits, `_` and `-`
 * @returns what `commitCheckpoint` needs to know about it, as plain data
 * @throws {DiskFullError} when it does not fit
 */
export async function writeShard(options: {
  readonly directory: string;
  readonly writer: number | string;
  readonly entries: readonly ShardEntry[];
}): Promise<ShardReport> {
  const { directory, writer, entries } = options;
  const id = typeof writer === "number" ? String(writer).padStart(5, "0") : writer;
  if (!/^[\w-]+$/.test(id)) {
    throw new RangeError(
      `Cannot name a checkpoint shard: writer must be of letters, digits, _ and -: current value is ${id}`,
    );
  }
  const file = `shard-${id}.safetensors`;
  const boxes = entries.map(({ kind, name, shape, offset, extent }): StoredBox => {
    const fault = boxFault(shape, { offset, extent });
    if (fault !== undefined) throw new RangeError(`Cannot save ${kind}/${name}: ${fault}`);
    return { kind, name, shape: [...shape], offset: [...offset], extent: [...extent] };
  });
  const tensors = entries.map(({ data, extent }, i) => (
    { name: entryKey(boxes[i]), dtype: "F32", shape: extent, data } as const
  ));
  // The manifest holds the boxes too; here they make a shard that is found alone tell what it is.
  const metadata = { format: "troupe-shard", boxes: JSON.stringify(boxes) };
  const path = join(directory, file);
  const { bytes, sha256 } = await writeSafetensors(path, tensors, { metadata, action: "write checkpoint shard" });
  try {
    await syncDirectory(directory);
  } catch (error) {
    throw fileError("write checkpoint shard", path, error);
  }
  return { file, bytes, sha256, boxes };
}

export interface CommitOptions {
  /** What `beginCheckpoint` returned. */
  readonly directory: string;
  readonly step: number;
  readonly shards: readonly ShardReport[];
  /** Every global tensor of the run. The shards must hold each exactly once, and nothing else. */
  readonly tensors: readonly GlobalTensor[];
  /** How the run is laid out; for people and notices. */
  readonly layout: Json;
  /** Data position, random states, schedulers, loss scaler. */
  readonly state: Json;
  /** The resolved run record, as text. */
  readonly config: string;
}

/**
 * Turns a folder of shards into a checkpoint: checks that they cover every tensor exactly once, writes the manifest, then
 * the mark, then gives the folder its name, each durable before the next. On failure the temporary folder is removed.
 *
 * A checkpoint of the same step that is there already is replaced, and lost only once the new one is in its place.
 *
 * @returns the checkpoint's folder, `{save_ckpt_folder}/{step}`
 */
export async function commitCheckpoint(options: CommitOptions): Promise<string> {
  const { directory, step, shards, tensors, layout, state, config } = options;
  const final = join(dirname(directory), String(step));
  try {
    if (!basename(directory).startsWith(`${step}.tmp-`)) {
      throw new RangeError(`Cannot commit checkpoint ${directory} as step ${step}: it was begun as another`);
    }
    requirePlainJson(layout, "layout");
    requirePlainJson(state, "state");
    const files = [...shards].sort((a, b) => a.file < b.file ? -1 : 1);
    checkCover(files, `Cannot commit checkpoint ${directory}`, tensors);
    for (const { file, bytes } of files) {
      const { size } = await Deno.stat(join(directory, file));
      if (size !== bytes) {
        throw new RangeError(
          `Cannot commit checkpoint ${directory}: ${file} has ${size} bytes where ${bytes} were written`,
        );
      }
    }
    const manifest: Manifest = {
      format: "troupe-checkpoint",
      version: FORMAT_VERSION,
      step,
      layout,
      state,
      config,
      files,
    };
    const text = JSON.stringify(manifest) + "\n";
    await writeTextDurably(join(directory, MANIFEST_FILE), text);
    await syncDirectory(directory);
    await writeTextDurably(join(directory, COMMIT_FILE), sha256Hex(text) + "\n");
    await syncDirectory(directory);
  } catch (error) {
    await abandonCheckpoint(directory);
    throw fileError("commit checkpoint", directory, error);
  }
  // From here on it is a checkpoint under either name, so a failure must not remove it.
  try {
    const replaced = join(dirname(directory), temporaryName(step));
    const isReplaced = await renameIfThere(final, replaced);
    await Deno.rename(directory, final);
    await syncDirectory(dirname(final));
    if (isReplaced) await Deno.remove(replaced, { recursive: true });
  } catch (error) {
    throw fileError("name checkpoint", final, error);
  }
  return final;
}

async function renameIfThere(from: string, to: string): Promise<boolean> {
  try {
    await Deno.rename(from, to);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Removes the temporary folder of a save that came to nothing. Never throws: what is left is recognised as torn. */
export async function abandonCheckpoint(directory: string): Promise<void> {
  if (!/^\d+\.tmp-/.test(basename(directory))) return; // never a checkpoint by mistake
  await Deno.remove(directory, { recursive: true }).catch(() => {});
}

/**
 * All three acts for a run with one writer.
 *
 * @example
 * ```ts
 * import { saveCheckpoint, wholeEntry } from "./save.ts";
 * import { newestUsable } from "./catalog.ts";
 * const folder = Deno.makeTempDirSync();
 * const weight = wholeEntry("parameter", "norm.weight", [2], new Float32Array([1, 2]));
 * await saveCheckpoint({ folder, step: 10, entries: [weight], layout: {}, state: { sample: 40 }, config: "" });
 * using checkpoint = (await newestUsable(folder))!;
 * const second = new Float32Array(1);
 * checkpoint.readBox("parameter", "norm.weight", { offset: [1], extent: [1] }, second);
 * console.assert(second[0] === 2);
 * ```
 */
export async function saveCheckpoint(
  options: Omit<CommitOptions, "directory" | "shards" | "tensors"> & {
    readonly folder: string;
    readonly entries: readonly ShardEntry[];
    /** @default what the entries name */
    readonly tensors?: readonly GlobalTensor[];
  },
): Promise<string> {
  const { folder, entries, ...rest } = options;
  const directory = await beginCheckpoint(folder, rest.step);
  let shard: ShardReport;
  try {
    shard = await writeShard({ directory, writer: 0, entries });
  } catch (error) {
    await abandonCheckpoint(directory);
    throw error;
  }
  const named = new Map(entries.map(({ kind, name, shape }) => [`${kind}/${name}`, { kind, name, shape }]));
  return commitCheckpoint({ tensors: [...named.values()], ...rest, directory, shards: [shard] });
}
