/**
 * Hugging Face model folders: `config.json` and `model.safetensors`, or `model-00001-of-0000N.safetensors` shards with
 * `model.safetensors.index.json`. Names stay as in the files; each model family maps them in its `weights.ts`.
 */
import { join } from "node:path";
import { fileError, syncDirectory, writeTextDurably } from "./durable.ts";
import {
  dtypeBytes,
  elementCount,
  TensorFile,
  type TensorInfo,
  type TensorSource,
  writeSafetensors,
} from "./safetensors.ts";

const SINGLE_FILE = "model.safetensors";
const INDEX_FILE = "model.safetensors.index.json";
/** What a writer may leave in a folder, and so may replace there. */
const WEIGHT_FILE = /^model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/;

function readJsonObject(path: string): Record<string, unknown> {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    throw fileError("read", path, error);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new SyntaxError(`Cannot read ${path}: it is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new SyntaxError(`Cannot read ${path}: it does not hold a JSON object`);
  }
  return value as Record<string, unknown>;
}

function exists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw fileError("look at", path, error);
  }
}

/** File names of an index by tensor name. */
function readIndex(path: string): Map<string, string> {
  const { weight_map: map } = readJsonObject(path);
  if (typeof map !== "object" || map === null || Array.isArray(map)) {
    throw new SyntaxError(`Cannot read ${path}: it has no weight_map object`);
  }
  for (const [name, file] of Object.entries(map)) {
    // A plain name only: an index from elsewhere must not lead out of its folder.
    if (typeof file !== "string" || !/^[\w.-]+$/.test(file) || file.startsWith(".")) {
      throw new SyntaxError(
        `Cannot read ${path}: tensor ${JSON.stringify(name)} is in ${
          JSON.stringify(file)
        }, which is no plain file name`,
      );
    }
  }
  return new Map(Object.entries(map as Record<string, string>));
}

/** An open model folder. */
export class HuggingFaceFolder implements Disposable {
  readonly #files: readonly TensorFile[];
  readonly #where: ReadonlyMap<string, TensorFile>;

  private constructor(
    readonly folder: string,
    /** `config.json` as it stands. */
    readonly config: Readonly<Record<string, unknown>>,
    files: readonly TensorFile[],
    where: ReadonlyMap<string, TensorFile>,
  ) {
    this.#files = files;
    this.#where = where;
  }

  /** @throws a clear error for a missing, truncated or altered file, and for a tensor that its shard does not hold. */
  static open(folder: string): HuggingFaceFolder {
    const config = readJsonObject(join(folder, "config.json"));
    const files: TensorFile[] = [];
    try {
      if (exists(join(folder, SINGLE_FILE))) {
        const file = TensorFile.open(join(folder, SINGLE_FILE));
        files.push(file);
        return new HuggingFaceFolder(
          folder,
          config,
          files,
          new Map([...file.tensors.keys()].map((name) => [name, file])),
        );
      }
      if (!exists(join(folder, INDEX_FILE))) {
        const pickled = [...Deno.readDirSync(folder)].find(({ name }) => /\.(bin|pth?|ckpt)$/.test(name));
        throw new Error(
          `Cannot read weights of ${folder}: it has neither ${SINGLE_FILE} nor ${INDEX_FILE}` +
            (pickled === undefined
              ? ""
              : `; ${pickled.name} is in Python's pickle format, save it as safetensors first`),
        );
      }
      const index = readIndex(join(folder, INDEX_FILE));
      const byName = new Map(
        [...new Set(index.values())].sort().map((name) => {
          const file = TensorFile.open(join(folder, name));
          files.push(file);
          return [name, file] as const;
        }),
      );
      const where = new Map<string, TensorFile>();
      for (const [name, fileName] of index) {
        const file = byName.get(fileName)!;
        file.info(name);
        where.set(name, file);
      }
      return new HuggingFaceFolder(folder, config, files, where);
    } catch (error) {
      for (const file of files) file[Symbol.dispose]();
      throw error;
    }
  }

  get names(): string[] {
    return [...this.#where.keys()];
  }

  has(name: string): boolean {
    return this.#where.has(name);
  }

  #fileOf(name: string): TensorFile {
    const file = this.#where.get(name);
    if (file === undefined) {
      const some = this.names.slice(0, 4).map((known) => JSON.stringify(known)).join(", ");
      throw new RangeError(
        `Cannot read weights of ${this.folder}: there is no tensor ${JSON.stringify(name)} ` +
          `among its ${this.#where.size}, such as ${some}`,
      );
    }
    return file;
  }

  info(name: string): TensorInfo {
    return this.#fileOf(name).info(name);
  }

  /** @throws {RangeError} with both shapes when the stored one differs, or with the shape when it is missing. */
  expectTensor(name: string, shape: readonly number[]): void {
    if (!this.has(name)) {
      throw new RangeError(
        `Cannot read weights of ${this.folder}: there is no tensor ${JSON.stringify(name)}, of shape [${shape}]`,
      );
    }
    this.#fileOf(name).expectTensor(name, shape);
  }

  /** As `TensorFile.readBytes`. */
  readBytes(name: string, into: ArrayBufferView, firstElement = 0): void {
    this.#fileOf(name).readBytes(name, into, firstElement);
  }

  /** As `TensorFile.readFloat32`. */
  readFloat32(name: string, into?: Float32Array, firstElement = 0): Float32Array {
    return this.#fileOf(name).readFloat32(name, into, firstElement);
  }

  [Symbol.dispose](): void {
    for (const file of this.#files) file[Symbol.dispose]();
  }
}

export interface WriteHuggingFaceOptions {
  readonly config: Readonly<Record<string, unknown>>;
  readonly tensors: readonly TensorSource[];
  /** A shard holds no more than this, save one tensor that alone is larger. @default {10e9} */
  readonly maxShardBytes?: number;
}

function splitIntoShards(tensors: readonly TensorSource[], maxShardBytes: number): TensorSource[][] {
  const shards: TensorSource[][] = [[]];
  let filled = 0;
  for (const tensor of tensors) {
    const bytes = elementCount(tensor.shape) * dtypeBytes[tensor.dtype];
    if (filled > 0 && filled + bytes > maxShardBytes) {
      shards.push([]);
      filled = 0;
    }
    shards.at(-1)!.push(tensor);
    filled += bytes;
  }
  return shards;
}

/**
 * Writes a model folder, replacing the weights and `config.json` that it had; other files there (a tokenizer) stay.
 * New files get their names only when all are written, so a full disk leaves what was there.
 *
 * @returns the names of the weight files
 */
export async function writeHuggingFace(folder: string, options: WriteHuggingFaceOptions): Promise<string[]> {
  const { config, tensors, maxShardBytes = 10e9 } = options;
  if (!(maxShardBytes > 0)) {
    throw new RangeError(
      `Cannot write weights to ${folder}: maxShardBytes must be above 0: current value is ${maxShardBytes}`,
    );
  }
  const shards = splitIntoShards(tensors, maxShardBytes);
  const digits = (n: number) => String(n).padStart(5, "0");
  const names = shards.length === 1
    ? [SINGLE_FILE]
    : shards.map((_, i) => `model-${digits(i + 1)}-of-${digits(shards.length)}.safetensors`);
  const temporary = (name: string) => join(folder, `.${name}.tmp`);
  const written = ["config.json", ...names, ...(shards.length === 1 ? [] : [INDEX_FILE])];
  try {
    await Deno.mkdir(folder, { recursive: true });
    for (const name of written) await Deno.remove(temporary(name)).catch(() => {}); // of an interrupted attempt
    for (const [i, shard] of shards.entries()) {
      await writeSafetensors(temporary(names[i]), shard, { metadata: { format: "pt" } });
    }
    if (shards.length > 1) {
      const total_size = tensors.reduce((sum, { shape, dtype }) => sum + elementCount(shape) * dtypeBytes[dtype], 0);
      const weight_map = Object.fromEntries(shards.flatMap((shard, i) => shard.map(({ name }) => [name, names[i]])));
      await writeTextDurably(
        temporary(INDEX_FILE),
        JSON.stringify({ metadata: { total_size }, weight_map }, null, 2) + "\n",
      );
    }
    await writeTextDurably(temporary("config.json"), JSON.stringify(config, null, 2) + "\n");
    for (const { name } of [...Deno.readDirSync(folder)]) {
      if (WEIGHT_FILE.test(name) && !written.includes(name)) await Deno.remove(join(folder, name));
    }
    for (const name of written) await Deno.rename(temporary(name), join(folder, name));
    await syncDirectory(folder);
  } catch (error) {
    for (const name of written) await Deno.remove(temporary(name)).catch(() => {});
    throw fileError("write weights to", folder, error);
  }
  return names;
}
