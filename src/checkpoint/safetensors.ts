/**
 * The safetensors format: eight bytes of header length, a JSON header of names, types, shapes and byte ranges, then the
 * tensors' bytes with no gaps (https://github.com/huggingface/safetensors#format). Everything little-endian, row-major.
 *
 * Reading trusts nothing: the header is bounded and checked against the file before a tensor is touched. Tensors are
 * read one at a time into the caller's arrays, and written in pieces, so neither side ever holds a file in memory.
 */
import { createHash } from "node:crypto";
import { fromBfloat16 } from "../std/bfloat16.ts";
import { fileError, readAllAt, writeAll } from "./durable.ts";

/** Bytes of one element. */
export const dtypeBytes = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  I64: 8,
  U64: 8,
  F64: 8,
} as const;
export type Dtype = keyof typeof dtypeBytes;

export interface TensorInfo {
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. */
  readonly begin: number;
  readonly bytes: number;
}

/** The reference implementation's bound. */
const MAX_HEADER_BYTES = 100_000_000;
/** Pieces in which tensors are converted and written. */
const CHUNK_BYTES = 4 << 20;

export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

export interface SafetensorsHeader {
  readonly metadata: Readonly<Record<string, string>>;
  /** In file order of their bytes. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

function plainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function tensorInfo(name: string, entry: unknown, dataBegin: number, fileBytes: number, where: string): TensorInfo {
  const what = `${where}: tensor ${JSON.stringify(name)}`;
  if (!plainObject(entry)) throw new SyntaxError(`${what} is not described by an object`);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== "string" || !Object.hasOwn(dtypeBytes, dtype)) {
    throw new SyntaxError(
      `${what} has the unknown type ${JSON.stringify(dtype)}: known are ${Object.keys(dtypeBytes).join(", ")}`,
    );
  }
  const size = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
  if (!Array.isArray(shape) || !shape.every(size)) {
    throw new SyntaxError(`${what} has the shape ${JSON.stringify(shape)}, which is not a list of sizes`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(size)) {
    throw new SyntaxError(`${what} has data_offsets ${JSON.stringify(offsets)}, which are not two byte positions`);
  }
  const [begin, end] = offsets as [number, number];
  const expected = elementCount(shape) * dtypeBytes[dtype as Dtype];
  if (end - begin !== expected) {
    throw new RangeError(
      `${what} has ${end - begin} bytes where its type and shape, ${dtype} [${shape}], need ${expected}`,
    );
  }
  if (dataBegin + end > fileBytes) {
    throw new RangeError(
      `${what} ends at byte ${dataBegin + end} of a file of ${fileBytes} bytes: the file is truncated or altered`,
    );
  }
  return { dtype: dtype as Dtype, shape, begin: dataBegin + begin, bytes: expected };
}

/**
 * Checks and parses a header (the bytes after the length).
 *
 * @param fileBytes size of the whole file, which the tensors must fill exactly
 * @param where names the file in errors
 * @throws {SyntaxError | RangeError} naming the tensor and the values that disagree
 */
function parseSafetensorsHeader(header: Uint8Array, fileBytes: number, where: string): SafetensorsHeader {
  let root: unknown;
  try {
    root = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(header));
  } catch (cause) {
    throw new SyntaxError(`${where}: its header is not valid JSON: not a safetensors file, or an altered one`, {
      cause,
    });
  }
  if (!plainObject(root)) throw new SyntaxError(`${where}: its header is not a JSON object: not a safetensors file`);
  const metadata: Record<string, string> = {};
  const list: [string, TensorInfo][] = [];
  const dataBegin = 8 + header.length;
  for (const [name, entry] of Object.entries(root)) {
    if (name !== "__metadata__") {
      list.push([name, tensorInfo(name, entry, dataBegin, fileBytes, where)]);
      continue;
    }
    if (!plainObject(entry) || !Object.values(entry).every((value) => typeof value === "string")) {
      throw new SyntaxError(`${where}: __metadata__ is not an object of texts`);
    }
    Object.assign(metadata, entry);
  }
  list.sort(([, a], [, b]) => a.begin - b.begin || a.bytes - b.bytes);
  let end = dataBegin;
  let previous = "the header";
  for (const [name, info] of list) {
    if (info.begin !== end) {
      const fault = info.begin < end ? "overlaps" : "leaves a gap after";
      throw new RangeError(
        `${where}: tensor ${
          JSON.stringify(name)
        } begins at byte ${info.begin} and ${fault} ${previous}, which ends at byte ${end}`,
      );
    }
    end += info.bytes;
    previous = `tensor ${JSON.stringify(name)}`;
  }
  if (end !== fileBytes) {
    throw new RangeError(`${where}: its tensors end at byte ${end} of ${fileBytes}: the file is altered`);
  }
  return { metadata, tensors: new Map(list) };
}

/** Throws unless a stored tensor has the shape that a model needs; the message holds both. */
function expectShape(path: string, name: string, found: TensorInfo | undefined, shape: readonly number[]): void {
  if (found === undefined) {
    throw new RangeError(`Cannot read ${path}: it has no tensor ${JSON.stringify(name)}, of shape [${shape}]`);
  }
  if (found.shape.length !== shape.length || found.shape.some((size, axis) => size !== shape[axis])) {
    throw new RangeError(
      `Cannot read tensor ${
        JSON.stringify(name)
      } of ${path}: its shape is [${found.shape}] where the model needs [${shape}]`,
    );
  }
}

function bytesOf(view: ArrayBufferView): Uint8Array<ArrayBuffer> {
  // Shared memory too: files and hashes take it as it is.
  return new Uint8Array(view.buffer as ArrayBuffer, view.byteOffset, view.byteLength);
}

/** An open safetensors file. Reads block: a read-back or a load has nothing better to do, and offsets cannot race. */
export class TensorFile implements Disposable {
  readonly #file: Deno.FsFile;
  #scratch: Uint8Array<ArrayBuffer> | undefined;

  private constructor(
    readonly path: string,
    file: Deno.FsFile,
    readonly bytes: number,
    readonly metadata: Readonly<Record<string, string>>,
    readonly tensors: ReadonlyMap<string, TensorInfo>,
  ) {
    this.#file = file;
  }

  /** Opens and checks a file. @throws a clear error for a missing, truncated or altered file. */
  static open(path: string): TensorFile {
    let file: Deno.FsFile;
    let stat: Deno.FileInfo;
    try {
      file = Deno.openSync(path);
    } catch (error) {
      throw fileError("open weights", path, error);
    }
    try {
      stat = file.statSync();
      const where = `Cannot read ${path}`;
      if (!stat.isFile) throw new TypeError(`${where}: it is not a file`);
      if (stat.size < 8) {
        throw new RangeError(`${where}: it has ${stat.size} bytes, fewer than the 8 of a safetensors header length`);
      }
      const length = new Uint8Array(8);
      readAllAt(file, 0, length, path);
      const headerBytes = Number(new DataView(length.buffer).getBigUint64(0, true));
      if (headerBytes > Math.min(MAX_HEADER_BYTES, stat.size - 8)) {
        throw new RangeError(
          `${where}: its header claims ${headerBytes} bytes of a file of ${stat.size} ` +
            `(at most ${MAX_HEADER_BYTES} are accepted): not a safetensors file, or a truncated one`,
        );
      }
      const header = new Uint8Array(headerBytes);
      readAllAt(file, 8, header, path);
      const { metadata, tensors } = parseSafetensorsHeader(header, stat.size, where);
      return new TensorFile(path, file, stat.size, metadata, tensors);
    } catch (error) {
      file.close();
      throw fileError("read weights", path, error);
    }
  }

  /** @throws {RangeError} when there is no such tensor. */
  info(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (info === undefined) {
      const some = [...this.tensors.keys()].slice(0, 4).map((known) => JSON.stringify(known)).join(", ");
      throw new RangeError(
        `Cannot read ${this.path}: it has no tensor ${
          JSON.stringify(name)
        }; it has ${this.tensors.size}, such as ${some}`,
      );
    }
    return info;
  }

  /** @throws {RangeError} with both shapes when the stored one differs. */
  expectTensor(name: string, shape: readonly number[]): void {
    expectShape(this.path, name, this.tensors.get(name), shape);
  }

  /** Reads raw bytes: all of a tensor, or as many elements from `firstElement` on as fill `into`. */
  readBytes(name: string, into: ArrayBufferView, firstElement = 0): void {
    const info = this.info(name);
    const target = bytesOf(into);
    const from = firstElement * dtypeBytes[info.dtype];
    if (from < 0 || from + target.length > info.bytes) {
      throw new RangeError(
        `Cannot read tensor ${JSON.stringify(name)} of ${this.path}: ` +
          `bytes ${from} to ${from + target.length} were asked of ${info.bytes}`,
      );
    }
    readAllAt(this.#file, info.begin + from, target, this.path);
  }

  /**
   * Reads an F32, F16 or BF16 tensor as 32-bit floats: all of it, or as many elements from `firstElement` on as `into` holds.
   *
   * @returns `into`, or a new array of the tensor's size
   */
  readFloat32(name: string, into?: Float32Array, firstElement = 0): Float32Array {
    const info = this.info(name);
    into ??= new Float32Array(elementCount(info.shape) - firstElement);
    if (info.dtype === "F32") {
      this.readBytes(name, into, firstElement);
      return into;
    }
    requireFloat(info.dtype, `Cannot read tensor ${JSON.stringify(name)} of ${this.path} as floats`);
    const step = CHUNK_BYTES / 2;
    this.#scratch ??= new Uint8Array(CHUNK_BYTES);
    for (let done = 0; done < into.length; done += step) {
      const target = into.subarray(done, done + step);
      const raw = this.#scratch.subarray(0, 2 * target.length);
      this.readBytes(name, raw, firstElement + done);
      float32From(info.dtype, raw, target);
    }
    return into;
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}

function requireFloat(dtype: Dtype, what: string): asserts dtype is "F32" | "F16" | "BF16" {
  if (dtype !== "F32" && dtype !== "F16" && dtype !== "BF16") {
    throw new TypeError(`${what}: its type is ${dtype}; F32, F16 and BF16 can be`);
  }
}

/** Widens stored bytes to 32-bit floats; exact. `raw.byteOffset` is a multiple of the element's size. */
export function float32From(dtype: "F32" | "F16" | "BF16", raw: Uint8Array, into: Float32Array): void {
  const buffer = raw.buffer as ArrayBuffer;
  if (dtype === "F32") into.set(new Float32Array(buffer, raw.byteOffset, into.length));
  else if (dtype === "F16") into.set(new Float16Array(buffer, raw.byteOffset, into.length));
  else fromBfloat16(new Uint16Array(buffer, raw.byteOffset, into.length), into);
}

/** A tensor to write: its bytes at once, or a function that yields them in pieces when the writer gets there. */
export interface TensorSource {
  readonly name: string;
  readonly dtype: Dtype;
  readonly shape: readonly number[];
  readonly data: ArrayBufferView | (() => Iterable<ArrayBufferView> | AsyncIterable<ArrayBufferView>);
}

export interface WrittenFile {
  readonly bytes: number;
  /** SHA-256 of the whole file, computed while writing. */
  readonly sha256: string;
}

/**
 * Writes a new safetensors file and makes its content durable. Tensors are laid out by falling element size (so that
 * each is aligned), else in the order given, and sources are asked in that order. A failed write removes the file.
 *
 * @throws {DiskFullError} with the bytes needed and available
 * @throws {RangeError} when a source's bytes do not agree with its type and shape, or a name comes twice
 *
 * @example
 * ```ts
 * import { TensorFile, writeSafetensors } from "./safetensors.ts";
 * const path = Deno.makeTempDirSync() + "/x.safetensors";
 * await writeSafetensors(path, [{ name: "x", dtype: "F32", shape: [2], data: new Float32Array([1, 2]) }]);
 * using file = TensorFile.open(path);
 * console.assert(file.readFloat32("x")[1] === 2);
 * ```
 */
export async function writeSafetensors(
  path: string,
  tensors: readonly TensorSource[],
  options: {
    readonly metadata?: Readonly<Record<string, string>>;
    /** What is being written, for errors. @default {"write weights"} */
    readonly action?: string;
  } = {},
): Promise<WrittenFile> {
  const { metadata, action = "write weights" } = options;
  const ordered = [...tensors].sort((a, b) => dtypeBytes[b.dtype] - dtypeBytes[a.dtype]);
  const entries: [string, unknown][] = metadata === undefined ? [] : [["__metadata__", metadata]];
  const names = new Set<string>(["__metadata__"]);
  let dataBytes = 0;
  for (const { name, dtype, shape } of ordered) {
    if (names.has(name)) {
      throw new RangeError(`Cannot ${action} ${path}: the name ${JSON.stringify(name)} comes twice or is reserved`);
    }
    names.add(name);
    const begin = dataBytes;
    dataBytes += elementCount(shape) * dtypeBytes[dtype];
    entries.push([name, { dtype, shape, data_offsets: [begin, dataBytes] }]);
  }
  let json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const padded = Math.ceil(json.length / 8) * 8;
  if (padded > MAX_HEADER_BYTES) {
    throw new RangeError(
      `Cannot ${action} ${path}: its header of ${padded} bytes passes the format's ${MAX_HEADER_BYTES}`,
    );
  }
  const head = new Uint8Array(8 + padded).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(padded), true);
  head.set(json, 8);
  json = head;

  const total = head.length + dataBytes;
  const hash = createHash("sha256");
  let created = false;
  try {
    using file = await Deno.open(path, { write: true, createNew: true });
    created = true;
    const write = async (bytes: Uint8Array) => {
      for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
        const piece = bytes.subarray(at, at + CHUNK_BYTES);
        hash.update(piece);
        await writeAll(file, piece);
      }
    };
    await write(head);
    for (const { name, dtype, shape, data } of ordered) {
      const expected = elementCount(shape) * dtypeBytes[dtype];
      let seen = 0;
      for await (const piece of typeof data === "function" ? data() : [data]) {
        seen += piece.byteLength;
        if (seen > expected) break;
        await write(bytesOf(piece));
      }
      if (seen !== expected) {
        throw new RangeError(
          `Cannot ${action} ${path}: tensor ${JSON.stringify(name)}, ${dtype} [${shape}], needs ${expected} bytes ` +
            `and was given ${seen > expected ? "more" : seen}`,
        );
      }
    }
    await file.sync();
  } catch (error) {
    if (created) await Deno.remove(path).catch(() => {}); // the first error is the one to tell
    throw error instanceof Deno.errors.AlreadyExists
      ? new Error(`Cannot ${action} ${path}: a file of this name is there already`, { cause: error })
      : fileError(action, path, error, total);
  }
  return { bytes: total, sha256: hash.digest("hex") };
}
