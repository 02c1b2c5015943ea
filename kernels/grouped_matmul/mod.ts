/**
 * Matrix products by group: rows stand in groups, and each group has a matrix of its own. Where a group begins is data on
 * the device, so the number of tiles is not known when the kernel is made: as many are started as there can be, every
 * group ending in a tile of its own, and each finds its group by walking the offsets.
 *
 * v1  `blocks`: an invocation a block of 4 x 4, straight from the buffers; for rasterisers in software
 * v2  `tiles`: a workgroup a tile of 64 x 64 through workgroup memory; for GPUs
 */
import type { FloatType } from "../host.ts";
import { type DeviceTraits, type Kernel, leastBytes, type Operand, type Pass } from "../kernel.ts";
import { requireSizes } from "../norm/rows.ts";
import * as reference from "./reference.ts";
import { type GroupedForm, groupedPasses } from "./text.ts";

export interface GroupedSizes {
  /** Rows that there is room for. Those from the last offset on are no group's. */
  readonly rows: number;
  readonly groups: number;
  /** Columns of an output row. */
  readonly n: number;
  /** Columns of an input row. */
  readonly k: number;
  /** What operands are stored as; sums are in `f32`. @default all `f32` */
  readonly types?: { readonly a?: FloatType; readonly b?: FloatType; readonly c?: FloatType };
}

function makeKernel(
  { name, sizes, operands, form, run }: {
    name: string;
    sizes: GroupedSizes;
    operands: readonly Operand[];
    form: GroupedForm;
    run: Kernel["reference"];
  },
): Kernel {
  const { rows, groups, n, k } = sizes;
  requireSizes(name, { rows, groups, n, k });
  return {
    name,
    shape: `${rows} x ${n} x ${k} in ${groups}`,
    operands,
    cost: { flops: 2 * rows * n * k, bytes: leastBytes(operands) },
    reference: run,
    passes: (traits: DeviceTraits): readonly Pass[] => groupedPasses(sizes, form, operands, traits),
  };
}

/**
 * `c[r] = a[r] B_g` for the rows r of every group g; zeros in rows that are no group's. With B stored as a linear layer's
 * weight is it is the layer, without `transposeB` the gradient of its input.
 *
 * Operands: a `[rows, k]`, b `[groups, k, n]` (with `transposeB` `[groups, n, k]`), offset u32 `[groups + 1]`, ascending →
 * c `[rows, n]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { groupedMatmul } from "./mod.ts";
 * const c = new Float32Array(3);
 * const kernel = groupedMatmul({ rows: 3, groups: 2, n: 1, k: 1, transposeB: true });
 * kernel.reference([new Float32Array([1, 2, 3]), new Float32Array([10, 100]), new Uint32Array([0, 1, 2]), c]);
 * console.assert(c.join() === "10,200,0");
 * ```
 */
export function groupedMatmul(
  { transposeB = false, ...sizes }: GroupedSizes & { readonly transposeB?: boolean },
): Kernel {
  const { rows, groups, n, k, types: { a = "f32", b = "f32", c = "f32" } = {} } = sizes;
  return makeKernel({
    name: `groupedMatmul.n${transposeB ? "t" : "n"}`,
    sizes,
    operands: [
      { name: "a", type: a, length: rows * k, access: "read" },
      { name: "b", type: b, length: groups * n * k, access: "read" },
      { name: "offset", type: "u32", length: groups + 1, access: "read" },
      { name: "c", type: c, length: rows * n, access: "write" },
    ],
    form: { kind: "rows", transposeB },
    run: (views) => reference.groupedMatmul(sizes, transposeB, views),
  });
}

/**
 * `C_g = Σ_r a[r]ᵀ b[r]` over the rows of every group g, zero for a group without rows: the gradient of the weights.
 *
 * Operands: a `[rows, n]`, b `[rows, k]`, offset u32 `[groups + 1]`, ascending → c `[groups, n, k]`, written, or added to
 * where `accumulate` is set.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function groupedOuter(
  { accumulate = false, ...sizes }: GroupedSizes & { readonly accumulate?: boolean },
): Kernel {
  const { rows, groups, n, k, types: { a = "f32", b = "f32", c = "f32" } = {} } = sizes;
  return makeKernel({
    name: "groupedMatmul.tn",
    sizes,
    operands: [
      { name: "a", type: a, length: rows * n, access: "read" },
      { name: "b", type: b, length: rows * k, access: "read" },
      { name: "offset", type: "u32", length: groups + 1, access: "read" },
      { name: "c", type: c, length: groups * n * k, access: accumulate ? "update" : "write" },
    ],
    form: { kind: "outer", accumulate },
    run: (views) => reference.groupedOuter(sizes, accumulate, views),
  });
}
