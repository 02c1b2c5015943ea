/**
 * bfloat16, the upper half of a `float32`, for which the language has no array yet: its bits lie in a `Uint16Array`. Any
 * array may be in shared memory.
 */

/** Widens to `float32`, exactly. @param into as long as `from` */
export function fromBfloat16(from: Uint16Array, into: Float32Array): void {
  const words = new Uint32Array(into.buffer, into.byteOffset, into.length);
  for (let i = 0; i < from.length; i++) words[i] = from[i] << 16;
}

/**
 * Rounds to the nearest, ties to even, and past the largest number to infinity.
 *
 * @param into as long as `from`
 *
 * @example
 * ```ts
 * import { toBfloat16 } from "./bfloat16.ts";
 * const bits = new Uint16Array(2);
 * toBfloat16(Float32Array.of(1, 1 + 2 ** -8), bits);
 * console.assert(bits[0] === 0x3f80 && bits[1] === 0x3f80);
 * ```
 */
export function toBfloat16(from: Float32Array, into: Uint16Array): void {
  const words = new Uint32Array(from.buffer, from.byteOffset, from.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    // A NaN must stay one: its payload may be in the bits that are dropped.
    if ((word & 0x7fffffff) > 0x7f800000) into[i] = (word >>> 16) | 0x40;
    else into[i] = (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
}
