/**
 * Random bits as a pure function of a counter, the same on host and device: `pcg4d` of Mark Jarzynski and Marc Olano,
 * "Hash Functions for GPU Rendering", Journal of Computer Graphics Techniques 9(3), 2020. Four words in, four words out,
 * integer arithmetic modulo 2^32 only.
 *
 * Dropout keys it by (element / 4, layer, step, seed), so that a mask is recomputed rather than kept, on any layout.
 */

/**
 * Hashes four words to four words.
 *
 * @example
 * ```ts
 * import { pcg4d } from "./counter_random.ts";
 * const [a] = pcg4d(0, 0, 0, 1);
 * const [b] = pcg4d(0, 0, 0, 1);
 * console.assert(a === b && a >= 0 && a < 2 ** 32);
 * ```
 */
export function pcg4d(x: number, y: number, z: number, w: number): [number, number, number, number] {
  x = Math.imul(x, 1664525) + 1013904223 | 0;
  y = Math.imul(y, 1664525) + 1013904223 | 0;
  z = Math.imul(z, 1664525) + 1013904223 | 0;
  w = Math.imul(w, 1664525) + 1013904223 | 0;
  x = x + Math.imul(y, w) | 0;
  y = y + Math.imul(z, x) | 0;
  z = z + Math.imul(x, y) | 0;
  w = w + Math.imul(y, z) | 0;
  x ^= x >>> 16;
  y ^= y >>> 16;
  z ^= z >>> 16;
  w ^= w >>> 16;
  x = x + Math.imul(y, w) | 0;
  y = y + Math.imul(z, x) | 0;
  z = z + Math.imul(x, y) | 0;
  w = w + Math.imul(y, z) | 0;
  return [x >>> 0, y >>> 0, z >>> 0, w >>> 0];
}

/** The same as WGSL: `fn pcg4d(key: vec4<u32>) -> vec4<u32>`. */
export const pcg4dWgsl = `fn pcg4d(key: vec4<u32>) -> vec4<u32> {
  var v = key * 1664525u + 1013904223u;
  v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
  v ^= v >> vec4<u32>(16u);
  v.x += v.y * v.w; v.y += v.z * v.x; v.z += v.x * v.y; v.w += v.y * v.z;
  return v;
}`;

/** Words below this are dropped: `rate` of all words. @throws {RangeError} unless 0 <= rate < 1. */
export function dropThreshold(rate: number): number {
  if (!(rate >= 0 && rate < 1)) throw new RangeError(`Cannot drop out: rate must be in [0, 1), got ${rate}`);
  return Math.floor(rate * 2 ** 32);
}
