/** The matrix product on the host, summed in double: the oracle of the forms beside this file. */
import type { HostArray } from "../kernel.ts";
import type { MatmulShape } from "./shape.ts";

/** a, b, [bias], [residual], c. Loops are ordered so that the innermost one runs along memory. */
export function matmul(
  { m, n, k, transposeA, transposeB, batch, accumulate, bias, residual }: MatmulShape,
  views: readonly HostArray[],
): void {
  const [a, b] = views;
  const biasView = bias ? views[2] : undefined;
  const residualView = residual ? views[bias ? 3 : 2] : undefined;
  const c = views[2 + Number(bias) + Number(residual)];
  const row = new Float64Array(k), sums = new Float64Array(n);
  for (let z = 0; z < batch; z++) {
    const aBase = z * m * k, bBase = z * k * n, cBase = z * m * n;
    for (let i = 0; i < m; i++) {
      for (let p = 0; p < k; p++) row[p] = a[aBase + (transposeA ? p * m + i : i * k + p)];
      if (transposeB) rowTimesTransposed(row, b, bBase, sums);
      else rowTimesPlain(row, b, bBase, sums);
      for (let j = 0; j < n; j++) {
        const at = cBase + i * n + j;
        let sum = sums[j];
        if (biasView) sum += biasView[j];
        if (residualView) sum += residualView[at];
        c[at] = accumulate ? c[at] + sum : sum;
      }
    }
  }
}

/** b is `[k, n]`. Four of its rows at a time, so that a sum is fetched and stored once for four products. */
function rowTimesPlain(row: Float64Array, b: HostArray, base: number, sums: Float64Array): void {
  const k = row.length, n = sums.length;
  sums.fill(0);
  let p = 0;
  for (; p + 4 <= k; p += 4) {
    const v0 = row[p], v1 = row[p + 1], v2 = row[p + 2], v3 = row[p + 3];
    const r0 = base + p * n, r1 = r0 + n, r2 = r1 + n, r3 = r2 + n;
    for (let j = 0; j < n; j++) {
      sums[j] = sums[j] + v0 * b[r0 + j] + v1 * b[r1 + j] + v2 * b[r2 + j] + v3 * b[r3 + j];
    }
  }
  for (; p < k; p++) {
    const value = row[p], start = base + p * n;
    for (let j = 0; j < n; j++) sums[j] += value * b[start + j];
  }
}

/** b is `[n, k]`. Four columns at a time, so that four sums are under way. */
function rowTimesTransposed(row: Float64Array, b: HostArray, base: number, sums: Float64Array): void {
  const k = row.length, n = sums.length;
  let j = 0;
  for (; j + 4 <= n; j += 4) {
    const start = base + j * k;
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (let p = 0; p < k; p++) {
      const value = row[p];
      s0 += value * b[start + p];
      s1 += value * b[start + k + p];
      s2 += value * b[start + 2 * k + p];
      s3 += value * b[start + 3 * k + p];
    }
    sums[j] = s0;
    sums[j + 1] = s1;
    sums[j + 2] = s2;
    sums[j + 3] = s3;
  }
  for (; j < n; j++) {
    let sum = 0;
    for (let p = 0; p < k; p++) sum += row[p] * b[base + j * k + p];
    sums[j] = sum;
  }
}
