/** Rotary embedding on the host: the oracle of the kernel beside this file. */
import type { HostArray } from "../kernel.ts";

/** x `[tokens, heads, headDim]`, positions, cosine, sine → y. */
export function rotate(
  { tokens, heads, headDim, positionsLength, interleaved, inverse }: {
    tokens: number;
    heads: number;
    headDim: number;
    positionsLength: number;
    interleaved: boolean;
    inverse: boolean;
  },
  [x, positions, cosine, sine, y]: readonly HostArray[],
): void {
  const half = headDim / 2;
  for (let token = 0; token < tokens; token++) {
    const table = Math.min(positions[token], positionsLength - 1) * half;
    for (let head = 0; head < heads; head++) {
      const base = (token * heads + head) * headDim;
      for (let i = 0; i < half; i++) {
        const [first, second] = interleaved ? [base + 2 * i, base + 2 * i + 1] : [base + i, base + i + half];
        const cos = cosine[table + i], sin = inverse ? -sine[table + i] : sine[table + i];
        const a = x[first], b = x[second];
        y[first] = a * cos - b * sin;
        y[second] = a * sin + b * cos;
      }
    }
  }
}
