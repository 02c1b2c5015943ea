/** Products by group on the host, each group's as one of the reference's own products: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";
import { matmul } from "../matmul/reference.ts";
import { type MatmulOptions, shapeOf } from "../matmul/shape.ts";
import type { GroupedSizes } from "./mod.ts";

const product = (options: MatmulOptions, views: readonly HostArray[]): void => matmul(shapeOf(options), views);

/** For each group that has any rows its number, and its rows. */
function* groupsOf({ rows, groups }: GroupedSizes, offset: HostArray) {
  for (let group = 0; group < groups; group++) {
    const start = Math.min(offset[group], rows);
    const end = Math.min(offset[group + 1], rows);
    if (start < end) yield { group, start, end };
  }
}

/** a, b, offset → c: each group's rows with the group's own matrix; zeros in rows that are no group's. */
export function groupedMatmul(sizes: GroupedSizes, transposeB: boolean, views: readonly HostArray[]): void {
  const [a, b, offset, c] = views, { n, k } = sizes;
  c.fill(0);
  for (const { group, start, end } of groupsOf(sizes, offset)) {
    product({ m: end - start, n, k, transposeB }, [
      a.subarray(start * k, end * k),
      b.subarray(group * n * k, (group + 1) * n * k),
      c.subarray(start * n, end * n),
    ]);
  }
}

/** a, b, offset → c: each group's own matrix, written or added to. */
export function groupedOuter(sizes: GroupedSizes, accumulate: boolean, views: readonly HostArray[]): void {
  const [a, b, offset, c] = views, { n, k } = sizes;
  if (!accumulate) c.fill(0);
  for (const { group, start, end } of groupsOf(sizes, offset)) {
    product({ m: n, n: k, k: end - start, transposeA: true, accumulate }, [
      a.subarray(start * n, end * n),
      b.subarray(start * k, end * k),
      c.subarray(group * n * k, (group + 1) * n * k),
    ]);
  }
}
