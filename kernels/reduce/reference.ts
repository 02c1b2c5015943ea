/** Sums on the host, in double. */
import type { HostArray } from "../kernel.ts";

/** y[c] (+)= sum over r of x[r, c]. x: (rows, columns), y: (columns) */
export function columnSumReference(x: HostArray, y: HostArray, rows: number, accumulate: boolean): void {
  const columns = y.length;
  const sums = new Float64Array(columns);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) sums[c] += x[r * columns + c];
  }
  for (let c = 0; c < columns; c++) y[c] = (accumulate ? y[c] : 0) + sums[c];
}

/** out[0] = sum of squares of x. */
export function squaredNormReference(x: HostArray, out: HostArray): void {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * x[i];
  out[0] = sum;
}
