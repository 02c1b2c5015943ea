/**
 * Half-width floats on the host. References are written for plain numbers, so whoever runs one decodes half operands
 * before and encodes what was written after: rounding happens where a device rounds, on the way to memory.
 *
 * `f16`: IEEE 754 binary16. `bf16`: the upper half of an `f32`. Both round to nearest, ties to even, and give infinity
 * past their largest number.
 */
import { fromBfloat16, toBfloat16 } from "../src/std/bfloat16.ts";
import type { ElementType, HostArray, Kernel } from "./kernel.ts";

/** Types that activations, parameters and gradients are stored in. Arithmetic is in `f32` whatever they are. */
export type FloatType = Extract<ElementType, "f32" | HalfType>;
export type HalfType = "f16" | "bf16";

export const isHalf = (type: ElementType): type is HalfType => type === "f16" || type === "bf16";

/**
 * Numbers as half floats, two bytes each, in element order: as the device stores them (the first of a pair in the low
 * half of a word). They are rounded to `f32` first, as a device has them.
 *
 * @example
 * ```ts
 * import { decode, encode } from "./host.ts";
 * console.assert(encode("bf16", [1])[0] === 0x3f80);
 * console.assert(decode("bf16", encode("bf16", [1 + 2 ** -8]))[0] === 1); // a tie: to even
 * console.assert(decode("f16", encode("f16", [65520]))[0] === Infinity);
 * ```
 */
export function encode(type: HalfType, values: ArrayLike<number>): Uint16Array<ArrayBuffer> {
  const singles = values instanceof Float32Array ? values : Float32Array.from(values);
  if (type === "f16") return new Uint16Array(new Float16Array(singles).buffer);
  const stored = new Uint16Array(singles.length);
  toBfloat16(singles, stored);
  return stored;
}

/** Half floats as numbers, exactly. */
export function decode(type: HalfType, stored: Uint16Array<ArrayBuffer>): Float32Array<ArrayBuffer> {
  if (type === "f16") return new Float32Array(new Float16Array(stored.buffer, stored.byteOffset, stored.length));
  const singles = new Float32Array(stored.length);
  fromBfloat16(stored, singles);
  return singles;
}

/** What is left of numbers once they have been stored: the numbers themselves for `f32` and integers. */
export function rounded(type: ElementType, values: ArrayLike<number>): ArrayLike<number> {
  return isHalf(type) ? decode(type, encode(type, values)) : values;
}

/** Memory of one operand: a place in a buffer. */
export interface HostMemory {
  readonly memory: ArrayBuffer;
  /** In bytes. */
  readonly offset: number;
}

/** Runs a kernel's reference on operands stored as on a device. Full-width operands are views, not copies. */
export function runReference(kernel: Kernel, memories: readonly HostMemory[]): void {
  const views = kernel.operands.map(({ type, length }, i): HostArray => {
    const { memory, offset } = memories[i];
    switch (type) {
      case "f32":
        return new Float32Array(memory, offset, length);
      case "u32":
        return new Uint32Array(memory, offset, length);
      case "i32":
        return new Int32Array(memory, offset, length);
      case "f16":
      case "bf16":
        return decode(type, new Uint16Array(memory, offset, length));
      default:
        return type satisfies never;
    }
  });
  kernel.reference(views);
  kernel.operands.forEach(({ type, length, access }, i) => {
    if (!isHalf(type) || access === "read") return;
    const { memory, offset } = memories[i];
    new Uint16Array(memory, offset, length).set(encode(type, views[i]));
  });
}
