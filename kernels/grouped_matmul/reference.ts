/** Products by group on the host, in double: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";
import type { GroupedSizes } from "./mod.ts";

/** a, b, offset → c: each group's rows with the group's own matrix; zeros in rows that are no group's. */
export function groupedMatmul(
  { rows, groups, n, k }: GroupedSizes,
  transposeB: boolean,
  [a, b, offset, c]: readonly HostArray[],
): void {
  c.fill(0);
  for (let g = 0; g < groups; g++) {
    for (let r = offset[g]; r < Math.min(offset[g + 1], rows); r++) {
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let p = 0; p < k; p++) sum += a[r * k + p] * b[g * n * k + (transposeB ? j * k + p : p * n + j)];
        c[r * n + j] = sum;
      }
    }
  }
}

/** a, b, offset → c: each group's own matrix, written or added to. */
export function groupedOuter(
  { rows, groups, n, k }: GroupedSizes,
  accumulate: boolean,
  [a, b, offset, c]: readonly HostArray[],
): void {
  for (let g = 0; g < groups; g++) {
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < k; j++) {
        let sum = 0;
        for (let r = offset[g]; r < Math.min(offset[g + 1], rows); r++) sum += a[r * n + i] * b[r * k + j];
        const at = (g * n + i) * k + j;
        c[at] = accumulate ? c[at] + sum : sum;
      }
    }
  }
}
