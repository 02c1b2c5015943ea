/** Angles of the rotary embedding, made on the host. */

export interface RotaryTables {
  /** `[length, headDim / 2]`, row by row. */
  readonly cosine: Float32Array<ArrayBuffer>;
  readonly sine: Float32Array<ArrayBuffer>;
}

/**
 * Tables of `cos(p · f_i)` and `sin(p · f_i)` with `f_i = base^(−2i / headDim)`, for positions `p` below `length`. Every
 * step is rounded to `f32`, as a framework that computes in `f32` does: at position 30,000 an exact product would
 * turn the fastest pair by 1e-3 more or less, and a model trained there expects its own angles.
 *
 * @throws {RangeError} when `headDim` is odd or `length` is not a positive whole number
 *
 * @example
 * ```ts
 * import { rotaryTables } from "./tables.ts";
 * const { cosine, sine } = rotaryTables({ headDim: 4, base: 10_000, length: 2 });
 * console.assert(cosine[0] === 1 && sine[0] === 0);
 * console.assert(sine[2] === Math.fround(Math.sin(1)));
 * ```
 */
export function rotaryTables(
  { headDim, base, length }: { readonly headDim: number; readonly base: number; readonly length: number },
): RotaryTables {
  if (headDim % 2 !== 0 || headDim < 2) {
    throw new RangeError(`Cannot make rotary tables: headDim must be even and positive, current value is ${headDim}`);
  }
  if (!Number.isSafeInteger(length) || length < 1) {
    throw new RangeError(
      `Cannot make rotary tables: length must be a whole number of at least 1, current value is ${length}`,
    );
  }
  const half = headDim / 2, round = Math.fround;
  const frequencies = Float32Array.from(
    { length: half },
    (_, i) => 1 / round(Math.pow(round(base), round(2 * i / headDim))),
  );
  const cosine = new Float32Array(length * half), sine = new Float32Array(length * half);
  for (let position = 0; position < length; position++) {
    for (let i = 0; i < half; i++) {
      const angle = round(position * frequencies[i]);
      cosine[position * half + i] = Math.cos(angle);
      sine[position * half + i] = Math.sin(angle);
    }
  }
  return { cosine, sine };
}

/**
 * Base of dynamic NTK scaling: unchanged up to `maxPositions`, beyond it `base · (factor · length / maxPositions −
 * (factor − 1))^(headDim / (headDim − 2))`, so that the slowest pair still covers the length.
 *
 * @example
 * ```ts
 * import { dynamicNtkBase } from "./tables.ts";
 * const shape = { base: 10_000, headDim: 64, maxPositions: 2048, factor: 1 };
 * console.assert(dynamicNtkBase({ ...shape, length: 2048 }) === 10_000);
 * console.assert(dynamicNtkBase({ ...shape, length: 4096 }) > 20_000);
 * ```
 */
export function dynamicNtkBase(
  { base, headDim, length, maxPositions, factor }: {
    readonly base: number;
    readonly headDim: number;
    readonly length: number;
    readonly maxPositions: number;
    readonly factor: number;
  },
): number {
  if (length <= maxPositions) return base;
  return base * (factor * length / maxPositions - (factor - 1)) ** (headDim / (headDim - 2));
}
