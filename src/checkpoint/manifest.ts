/**
 * What a checkpoint folder holds, and the names in it:
 *
 *     {save_ckpt_folder}/{step}/
 *       shard-{writer}.safetensors   boxes of global tensors, one file a writer
 *       manifest.json                everything else, and each shard's size, hash and boxes
 *       COMMITTED                    the manifest's hash, written last: a checkpoint exists only with it
 *
 * Until then the folder is named `{step}.tmp-{random}`.
 */
import { randomBytes } from "node:crypto";
import { z } from "zod";
import { type Box, boxFault, coverFault, describeBox } from "./box.ts";
import { elementCount } from "./safetensors.ts";

export const MANIFEST_FILE = "manifest.json";
export const COMMIT_FILE = "COMMITTED";
export const FORMAT_VERSION = 1;

/** `{step}`, or `{step}.tmp-{random}` while being written, replaced or removed. */
export const CHECKPOINT_NAME = /^(\d{1,15})(\.tmp-[0-9a-f]+)?$/;

export function temporaryName(step: number): string {
  return `${step}.tmp-${randomBytes(6).toString("hex")}`;
}

/** A master weight, or one of the optimizer's two moments of it; all 32-bit floats. */
export const entryKinds = ["parameter", "moment1", "moment2"] as const;
export type EntryKind = typeof entryKinds[number];

/** Plain JSON: what survives `JSON.stringify` and back unchanged. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** A box of a global tensor, as one stored entry. */
export interface StoredBox extends Box {
  readonly kind: EntryKind;
  /** Canonical name of the tensor. */
  readonly name: string;
  /** Shape of the whole tensor. */
  readonly shape: readonly number[];
}

/** What a writer tells the coordinator about its shard; plain data. */
export interface ShardReport {
  readonly file: string;
  readonly bytes: number;
  readonly sha256: string;
  readonly boxes: readonly StoredBox[];
}

export interface Manifest {
  readonly format: "troupe-checkpoint";
  readonly version: typeof FORMAT_VERSION;
  readonly step: number;
  /** How the run that saved was laid out; for people and for notices, never needed to load. */
  readonly layout: Json;
  /** Data position, random states, schedulers, loss scaler. */
  readonly state: Json;
  /** The resolved run record, as text. */
  readonly config: string;
  readonly files: readonly ShardReport[];
}

/** Name of an entry in its safetensors shard: `moment1/norm.weight`, `parameter/output.weight[0:8, 0:4]`. */
export function entryKey(box: StoredBox): string {
  const whole = elementCount(box.extent) === elementCount(box.shape);
  return `${box.kind}/${box.name}${whole ? "" : describeBox(box)}`;
}

const count = z.number().int().nonnegative();
const manifestSchema = z.strictObject({
  format: z.literal("troupe-checkpoint"),
  version: z.literal(FORMAT_VERSION),
  step: count,
  layout: z.json(),
  state: z.json(),
  config: z.string(),
  files: z.array(z.strictObject({
    file: z.string().regex(/^shard-[\w-]+\.safetensors$/),
    bytes: count,
    sha256: z.string().regex(/^[0-9a-f]{64}$/),
    boxes: z.array(z.strictObject({
      kind: z.enum(entryKinds),
      name: z.string().min(1),
      shape: z.array(count),
      offset: z.array(count),
      extent: z.array(count),
    })),
  })),
});

/** @throws {SyntaxError | RangeError} saying which field is wrong, or which tensor is not covered exactly once. */
export function parseManifest(text: string, where: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new SyntaxError(`${where} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
  const version = (value as { version?: unknown } | null)?.version;
  if (typeof version === "number" && version > FORMAT_VERSION) {
    throw new RangeError(
      `${where} is of format version ${version}; this program reads up to ${FORMAT_VERSION}: use a newer one`,
    );
  }
  const parsed = manifestSchema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new SyntaxError(`${where} is malformed at ${issue.path.join(".") || "its top level"}: ${issue.message}`);
  }
  checkCover(parsed.data.files, where);
  return parsed.data as Manifest;
}

/** A global tensor: what boxes must cover. */
export interface GlobalTensor {
  readonly kind: EntryKind;
  readonly name: string;
  readonly shape: readonly number[];
}

/**
 * Checks that the boxes of all files cover every global tensor exactly once.
 *
 * @param expected every tensor that must be there; without it, those that the boxes themselves name
 * @throws {RangeError} naming the tensor and what is missing, doubled or disagrees
 */
export function checkCover(files: readonly ShardReport[], where: string, expected?: readonly GlobalTensor[]): void {
  const tensors = new Map<string, { tensor: GlobalTensor; boxes: Box[] }>();
  for (const tensor of expected ?? []) tensors.set(`${tensor.kind}/${tensor.name}`, { tensor, boxes: [] });
  for (const { file, boxes } of files) {
    for (const box of boxes) {
      const key = `${box.kind}/${box.name}`;
      let known = tensors.get(key);
      if (known === undefined) {
        if (expected !== undefined) {
          throw new RangeError(`${where}: ${file} holds ${key}, which is none of the run's tensors`);
        }
        tensors.set(key, known = { tensor: box, boxes: [] });
      }
      const { shape } = known.tensor;
      if (boxFault(box.shape, box) !== undefined || String(shape) !== String(box.shape)) {
        throw new RangeError(
          `${where}: ${key} in ${file} has shape [${box.shape}], ` +
            (boxFault(box.shape, box) ?? `elsewhere [${shape}]`),
        );
      }
      known.boxes.push(box);
    }
  }
  for (const [key, { tensor, boxes }] of tensors) {
    const fault = coverFault(tensor.shape, boxes);
    if (fault !== undefined) throw new RangeError(`${where}: ${key} is not stored exactly once: ${fault}`);
  }
}

/** Throws when a value would not come back from JSON as it is: a `NaN` or a typed array would change in silence. */
export function requirePlainJson(value: unknown, path: string): void {
  if (value === null || typeof value === "boolean" || typeof value === "string") return;
  if (typeof value === "number" && Number.isFinite(value)) return;
  if (Array.isArray(value)) return value.forEach((item, i) => requirePlainJson(item, `${path}[${i}]`));
  if (typeof value === "object" && [Object.prototype, null].includes(Object.getPrototypeOf(value))) {
    for (const [key, item] of Object.entries(value)) {
      if (item !== undefined) requirePlainJson(item, `${path}.${key}`); // an absent field stays absent
    }
    return;
  }
  const seen = typeof value === "object" ? value.constructor.name : String(value);
  throw new TypeError(`Cannot save ${path}: it must be plain JSON to come back unchanged: current value is ${seen}`);
}
