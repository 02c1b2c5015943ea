/** The matrix product on the host, summed in double: the oracle of the forms beside this file. */
import type { HostArray } from "../kernel.ts";
import type { MatmulShape } from "./shape.ts";
import { deepestProduct, productByVectors, type TakeSums, type Terms } from "./vector_product.ts";

/**
 * a, b, [bias], [residual], c. What is added to C is rounded first, where C is `f32`, as if it had been stored and added:
 * devices do so too, and a sum then has the same bits whoever adds it up.
 *
 * @param product who sums; all come to the same bits
 */
export function matmul(
  { m, n, k, transposeA, transposeB, batch, accumulate, bias, residual }: MatmulShape,
  views: readonly HostArray[],
  product = k === 0 || k > deepestProduct ? productByNumbers : productByVectors,
): void {
  const [a, b] = views;
  const biasView = bias ? views[2] : undefined;
  const residualView = residual ? views[bias ? 3 : 2] : undefined;
  const c = views[2 + Number(bias) + Number(residual)];
  const single = c instanceof Float32Array;
  for (let z = 0; z < batch; z++) {
    const rows = { values: a, first: z * m * k, items: m, toItem: transposeA ? 1 : k, toTerm: transposeA ? m : 1 };
    const columns = { values: b, first: z * k * n, items: n, toItem: transposeB ? k : 1, toTerm: transposeB ? 1 : n };
    product(rows, columns, k, (row, height, column, width, sums, from) => {
      for (let r = 0; r < height; r++) {
        const first = z * m * n + (row + r) * n + column;
        for (let j = 0; j < width; j++) {
          let sum = sums[from + 4 * j + r];
          if (biasView) sum += biasView[column + j];
          if (residualView) sum += residualView[first + j];
          c[first + j] = accumulate ? c[first + j] + (single ? Math.fround(sum) : sum) : sum;
        }
      }
    });
  }
}

/**
 * Rows of a four at a time, so that an element of b is fetched once for four products, and two columns of b: eight sums are
 * under way, as many as fit into registers beside their operands.
 */
export function productByNumbers(rows: Terms, columns: Terms, depth: number, take: TakeSums): void {
  const four = new Float64Array(4 * depth), sums = new Float64Array(4 * columns.items);
  for (let row = 0; row < rows.items; row += 4) {
    const height = Math.min(4, rows.items - row);
    for (let r = 0; r < height; r++) {
      const first = rows.first + (row + r) * rows.toItem;
      for (let p = 0; p < depth; p++) four[4 * p + r] = rows.values[first + p * rows.toTerm];
    }
    fourRows(four, columns, sums);
    take(row, height, 0, columns.items, sums, 0);
  }
}

/** Four rows, an element of each after the other, times all columns; likewise the sums. */
function fourRows(
  rows: Float64Array,
  { values: b, first, items: n, toItem: toColumn, toTerm: toRow }: Terms,
  sums: Float64Array,
): void {
  for (let j = 0; j < n; j += 2) {
    let s0 = 0, s1 = 0, s2 = 0, s3 = 0, t0 = 0, t1 = 0, t2 = 0, t3 = 0;
    // The last column of an odd number goes twice.
    let at = first + j * toColumn, next = j + 1 < n ? at + toColumn : at;
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
