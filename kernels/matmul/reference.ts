/** The matrix product on the host, summed in double: the oracle of the forms beside this file. */
import type { HostArray } from "../kernel.ts";
import type { MatmulShape } from "./shape.ts";

/**
 * a, b, [bias], [residual], c. Rows of a four at a time, so that an element of b is fetched once for four products. What is
 * added to C is rounded first, where C is `f32`, as if it had been stored and added: devices do so too, and a sum then has
 * the same bits whoever adds it up.
 */
export function matmul(
  { m, n, k, transposeA, transposeB, batch, accumulate, bias, residual }: MatmulShape,
  views: readonly HostArray[],
): void {
  const [a, b] = views;
  const biasView = bias ? views[2] : undefined;
  const residualView = residual ? views[bias ? 3 : 2] : undefined;
  const c = views[2 + Number(bias) + Number(residual)];
  const addend = c instanceof Float32Array ? Math.fround : (sum: number) => sum;
  const rows = new Float64Array(4 * k), sums = new Float64Array(4 * n);
  const toColumn = transposeB ? k : 1, toRow = transposeB ? 1 : n;
  for (let z = 0; z < batch; z++) {
    const aBase = z * m * k, bBase = z * k * n, cBase = z * m * n;
    for (let i = 0; i < m; i += 4) {
      const height = Math.min(4, m - i);
      for (let r = 0; r < height; r++) {
        for (let p = 0; p < k; p++) rows[4 * p + r] = a[aBase + (transposeA ? p * m + i + r : (i + r) * k + p)];
      }
      fourRows(rows, b, bBase, toColumn, toRow, sums);
      for (let r = 0; r < height; r++) {
        for (let j = 0; j < n; j++) {
          const at = cBase + (i + r) * n + j;
          let sum = sums[4 * j + r];
          if (biasView) sum += biasView[j];
          if (residualView) sum += residualView[at];
          c[at] = accumulate ? c[at] + addend(sum) : sum;
        }
      }
    }
  }
}

/**
 * Four rows, an element of each after the other, times b; likewise the sums. Two columns of b at a time: eight sums are
 * under way, as many as fit into registers beside their operands.
 *
 * @param toColumn from an element of b to that of the next column, and `toRow` to that of the next row
 */
function fourRows(
  rows: Float64Array,
  b: HostArray,
  base: number,
  toColumn: number,
  toRow: number,
  sums: Float64Array,
): void {
  const n = sums.length / 4;
  for (let j = 0; j < n; j += 2) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
    // The last column of an odd number goes twice.
    let at = base + j * toColumn, next = j + 1 < n ? at + toColumn : at;
    for (let p = 0; p < rows.length; p += 4) {
      const v0 = rows[p], v1 = rows[p + 1], v2 = rows[p + 2], v3 = rows[p + 3], x = b[at], y = b[next];
      s0 += v0 * x;
      s1 += v1 * x;
      s2 += v2 * x;
      s3 += v3 * x;
      t0 += v0 * y;
      t1 += v1 * y;
      t2 += v2 * y;
      t3 += v3 * y;
      at += toRow;
      next += toRow;
    }
    const to = 4 * j;
    sums[to] = s0;
    sums[to + 1] = s1;
    sums[to + 2] = s2;
    sums[to + 3] = s3;
    if (j + 1 === n) break;
    sums[to + 4] = t0;
    sums[to + 5] = t1;
    sums[to + 6] = t2;
    sums[to + 7] = t3;
  }
}
