/** Normalisation of rows on the host, in double: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";

interface Sizes {
  readonly rows: number;
  readonly columns: number;
}

/** Norms below this count as this. */
export const smallestNorm = 1e-12;

/** w → y, inverse. */
export function rowNormalizeForward({ rows, columns }: Sizes, [w, y, inverse]: readonly HostArray[]): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns;
    let squares = 0;
    for (let c = 0; c < columns; c++) squares += w[base + c] ** 2;
    const scale = 1 / Math.max(Math.sqrt(squares), smallestNorm);
    inverse[row] = scale;
    for (let c = 0; c < columns; c++) y[base + c] = w[base + c] * scale;
  }
}

/** y, inverse, dY → dW: dW = inverse (dY − y (y·dY)), without the second term where the norm was below the smallest. */
export function rowNormalizeBackward(
  { rows, columns, accumulate }: Sizes & { accumulate: boolean },
  [y, inverse, dY, dW]: readonly HostArray[],
): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns, scale = inverse[row];
    let product = 0;
    if (scale < 0.999 / smallestNorm) { for (let c = 0; c < columns; c++) product += y[base + c] * dY[base + c]; }
    for (let c = 0; c < columns; c++) {
      const gradient = scale * (dY[base + c] - y[base + c] * product);
      dW[base + c] = accumulate ? dW[base + c] + gradient : gradient;
    }
  }
}
