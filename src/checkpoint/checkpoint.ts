/** Reading a checkpoint: any box of any tensor, whatever boxes the run that saved had. */
import { join } from "node:path";
import { type Box, boxFault, copyRuns, describeBox, intersect, wholeBox } from "./box.ts";
import { fileError, sha256Hex } from "./durable.ts";
import {
  COMMIT_FILE,
  entryKey,
  type EntryKind,
  type Manifest,
  MANIFEST_FILE,
  parseManifest,
  type StoredBox,
} from "./manifest.ts";
import { elementCount, TensorFile } from "./safetensors.ts";

/** A folder that is no usable checkpoint: `torn` was never completed, `corrupt` was completed and is damaged. */
export class CheckpointError extends Error {
  override readonly name = "CheckpointError";
  constructor(message: string, readonly status: "torn" | "corrupt", options?: ErrorOptions) {
    super(message, options);
  }
}

/** Elements read at a time where the wanted ones lie close together but not in one run. */
const WINDOW = 256 << 10;

/**
 * Reads and checks the commit mark, the manifest and the sizes of the files, not their content.
 *
 * @throws {CheckpointError} saying what is missing or altered
 */
export function readManifest(directory: string): Manifest {
  const read = (file: string): string | undefined => {
    try {
      return Deno.readTextFileSync(join(directory, file));
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw fileError("read checkpoint file", join(directory, file), error);
    }
  };
  const mark = read(COMMIT_FILE);
  if (mark === undefined) throw new CheckpointError(whyUnmarked(directory), "torn");
  if (!/^[0-9a-f]{64}\n$/.test(mark)) {
    throw new CheckpointError(`Checkpoint ${directory} is torn: its commit mark is incomplete`, "torn");
  }
  const corrupt = (reason: string, cause?: unknown) =>
    new CheckpointError(`Checkpoint ${directory} is corrupt: ${reason}`, "corrupt", { cause });
  const text = read(MANIFEST_FILE);
  if (text === undefined) throw corrupt(`${MANIFEST_FILE} is missing`);
  if (sha256Hex(text) !== mark.trim()) throw corrupt(`${MANIFEST_FILE} is not what was committed`);
  let manifest: Manifest;
  try {
    manifest = parseManifest(text, MANIFEST_FILE);
  } catch (error) {
    throw corrupt((error as Error).message, error);
  }
  for (const { file, bytes } of manifest.files) {
    let size: number;
    try {
      size = Deno.statSync(join(directory, file)).size;
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) throw corrupt(`${file} is missing`, error);
      throw fileError("read checkpoint file", join(directory, file), error);
    }
    if (size !== bytes) throw corrupt(`${file} has ${size} bytes where ${bytes} were committed`);
  }
  return manifest;
}

function whyUnmarked(directory: string): string {
  let names: string[];
  try {
    names = [...Deno.readDirSync(directory)].map(({ name }) => name);
  } catch (error) {
    throw fileError("read checkpoint", directory, error);
  }
  if (names.some((name) => name.endsWith(".step") || name.startsWith("model_tp") || name.startsWith("model_wp"))) {
    return `${directory} is a checkpoint of InternEvo's, in Python's pickle format, which cannot be read here: ` +
      `convert it to a Hugging Face folder and load that with ckpt_type hf`;
  }
  return `Checkpoint ${directory} is torn: it has no commit mark, so its save was never completed`;
}

/** An open checkpoint. Reads block; nothing is held in memory but the manifest and the headers of shards in use. */
export class Checkpoint implements Disposable {
  readonly #boxes = new Map<string, { box: StoredBox; file: string }[]>();
  readonly #open = new Map<string, TensorFile>();
  readonly #window = new Float32Array(WINDOW);

  private constructor(readonly directory: string, readonly manifest: Manifest) {
    for (const { file, boxes } of manifest.files) {
      for (const box of boxes) {
        const key = `${box.kind}/${box.name}`;
        const list = this.#boxes.get(key) ?? [];
        list.push({ box, file });
        this.#boxes.set(key, list);
      }
    }
  }

  /**
   * Opens a checkpoint folder, checking mark, manifest and sizes; `verifyCheckpoint` also checks the content.
   *
   * @throws {CheckpointError} for a torn or corrupt one
   */
  static open(directory: string): Checkpoint {
    return new Checkpoint(directory, readManifest(directory));
  }

  get step(): number {
    return this.manifest.step;
  }

  /** Shape of a global tensor, or undefined when the checkpoint has none of that name. */
  shape(kind: EntryKind, name: string): readonly number[] | undefined {
    return this.#boxes.get(`${kind}/${name}`)?.[0].box.shape;
  }

  /** Names of the global tensors of a kind. */
  names(kind: EntryKind): string[] {
    const prefix = `${kind}/`;
    return [...this.#boxes.keys()].filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length));
  }

  /** @throws {RangeError} with both shapes when the stored one differs, or with the shape when it is missing. */
  expectTensor(kind: EntryKind, name: string, shape: readonly number[]): void {
    const found = this.shape(kind, name);
    if (found !== undefined && found.length === shape.length && found.every((size, i) => size === shape[i])) return;
    throw new RangeError(
      `Cannot load ${kind}/${name} from checkpoint ${this.directory}: ` +
        (found === undefined
          ? `it has none, of shape [${shape}]`
          : `its shape is [${found}] where the model needs [${shape}]`),
    );
  }

  /**
   * Reads a box of a global tensor, assembled from the stored boxes that it meets.
   *
   * @param into the box's elements, row-major; exactly as many
   * @throws {RangeError} for an unknown name, a box outside the tensor or an array of another size
   * @throws {CheckpointError} when a shard is not what the manifest says
   */
  readBox(kind: EntryKind, name: string, target: Box, into: Float32Array): void {
    const what = `Cannot load ${kind}/${name} from checkpoint ${this.directory}`;
    const stored = this.#boxes.get(`${kind}/${name}`);
    if (stored === undefined) throw new RangeError(`${what}: it has none of that name`);
    const fault = boxFault(stored[0].box.shape, target);
    if (fault !== undefined) throw new RangeError(`${what}: ${fault}`);
    if (into.length !== elementCount(target.extent)) {
      throw new RangeError(
        `${what}: the box ${describeBox(target)} has ${elementCount(target.extent)} elements, the array ${into.length}`,
      );
    }
    for (const { box, file } of stored) {
      const common = intersect(box, target);
      if (common !== undefined) this.#copy(file, box, target, common, into);
    }
  }

  /** Reads a whole tensor. */
  readTensor(kind: EntryKind, name: string, into?: Float32Array): Float32Array {
    const shape = this.shape(kind, name);
    if (shape === undefined) {
      throw new RangeError(`Cannot load ${kind}/${name} from checkpoint ${this.directory}: it has none of that name`);
    }
    into ??= new Float32Array(elementCount(shape));
    this.readBox(kind, name, wholeBox(shape), into);
    return into;
  }

  #shard(file: string): TensorFile {
    let shard = this.#open.get(file);
    if (shard === undefined) this.#open.set(file, shard = TensorFile.open(join(this.directory, file)));
    return shard;
  }

  #copy(file: string, box: StoredBox, target: Box, common: Box, into: Float32Array): void {
    const key = entryKey(box);
    const shard = this.#shard(file);
    const info = shard.tensors.get(key);
    if (info?.dtype !== "F32" || String(info.shape) !== String(box.extent)) {
      throw new CheckpointError(
        `Checkpoint ${this.directory} is corrupt: ${file} does not hold ${key} as its manifest says`,
        "corrupt",
      );
    }
    const runs = copyRuns(box, target, common);
    const { length } = runs;
    // Runs close together are read through a window, far ones or long ones each by itself and in place.
    const stride = runs.source.length > 1 ? runs.source[1] - runs.source[0] : Infinity;
    const windowed = length < WINDOW / 4 && stride <= 8 * length;
    const total = elementCount(box.extent);
    let windowBegin = 0, windowEnd = 0;
    for (let run = 0; run < runs.source.length; run++) {
      const from = runs.source[run];
      const to = into.subarray(runs.target[run], runs.target[run] + length);
      if (!windowed) {
        shard.readBytes(key, to, from);
        continue;
      }
      if (from < windowBegin || from + length > windowEnd) {
        windowBegin = from;
        windowEnd = Math.min(from + WINDOW, total);
        shard.readBytes(key, this.#window.subarray(0, windowEnd - windowBegin), windowBegin);
      }
      to.set(this.#window.subarray(from - windowBegin, from - windowBegin + length));
    }
  }

  [Symbol.dispose](): void {
    for (const shard of this.#open.values()) shard[Symbol.dispose]();
    this.#open.clear();
  }
}

/** Opens a checkpoint folder (see `Checkpoint.open`). */
export function openCheckpoint(directory: string): Checkpoint {
  return Checkpoint.open(directory);
}
