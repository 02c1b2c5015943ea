/** Elements on the wire, and sums of them in `float32`. */
import type { ElementType, Reduction } from "../transport/frame.ts";
import { fromBfloat16, toBfloat16 } from "../../std/bfloat16.ts";
import { addVectors } from "./vector_sum.ts";

/** `float32`, `float16`, `bfloat16` (its bits), or bytes, which cannot be summed. Any may be in shared memory. */
export type Elements = Float32Array | Float16Array | Uint16Array | Uint8Array;

export function typeOf(data: Elements): ElementType {
  if (data instanceof Float32Array) return "f32";
  if (data instanceof Float16Array) return "f16";
  return data instanceof Uint16Array ? "bf16" : "bytes";
}

export const bytesOf = (data: Elements): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** The same elements under the same type, without a copy. */
export const part = <T extends Elements>(data: T, begin: number, end: number): T => data.subarray(begin, end) as T;

/** To `float32`, exactly. `into` is as long as `from`. */
export function widen(from: Elements, into: Float32Array): void {
  if (from instanceof Uint16Array) fromBfloat16(from, into);
  else into.set(from);
}

/** From `float32`, to the nearest, ties to even. */
export function narrow(from: Float32Array, into: Elements): void {
  if (into instanceof Uint16Array) toBfloat16(from, into);
  else into.set(from);
}

/** Half types that numbers may travel as. */
export type HalfElements = "f16" | "bf16";

const asHalf = (room: Float32Array, type: HalfElements): Float16Array | Uint16Array =>
  type === "f16"
    ? new Float16Array(room.buffer, room.byteOffset, room.length)
    : new Uint16Array(room.buffer, room.byteOffset, room.length);

/** Numbers at a time, so that what is on the way stays in the processor's cache. */
const strip = 16384;

/** Rounds numbers to a half type, where they lie: they take the first half of the room then. */
export function narrowInPlace(room: Float32Array, type: HalfElements): Float16Array | Uint16Array {
  const half = asHalf(room, type);
  for (let at = 0; at < room.length; at += strip) {
    const singles = room.slice(at, at + strip); // a copy: they are written over
    narrow(singles, half.subarray(at, at + singles.length));
  }
  return half;
}

/** The other way, for elements `begin` up to `end`, from the last on: what is written over has been read. */
export function widenInPlace(room: Float32Array, type: HalfElements, begin = 0, end = room.length): void {
  const half = asHalf(room, type);
  for (let to = end; to > begin; to -= Math.min(strip, to - begin)) {
    const from = Math.max(begin, to - strip);
    widen(half.slice(from, to), room.subarray(from, to));
  }
}

const bits = new Uint32Array(1), number = new Float32Array(bits.buffer);

/** `sum[i] = sum[i] ∘ term[i]`, in `float32`. */
export function accumulate(sum: Float32Array, term: Elements, reduction: Reduction): void {
  const { length } = term;
  if (term instanceof Uint16Array) {
    for (let i = 0; i < length; i++) {
      bits[0] = term[i]! << 16; // widened here: to do so apart takes half as long again
      sum[i] = reduction === "max" ? Math.max(sum[i]!, number[0]!) : sum[i]! + number[0]!;
    }
  } else if (reduction === "max") {
    for (let i = 0; i < length; i++) sum[i] = Math.max(sum[i]!, term[i]!);
  } else if (term instanceof Float32Array) { // apart from the half type: one type a loop keeps it fast
    for (let i = addVectors(sum, term); i < length; i++) sum[i] = sum[i]! + term[i]!;
  } else {
    for (let i = 0; i < length; i++) sum[i] = sum[i]! + term[i]!;
  }
}
