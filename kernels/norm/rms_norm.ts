/** Root-mean-square norm (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"). */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { columnScratch, columnSumPasses } from "./column_sums.ts";
import * as reference from "./reference.ts";
import { bindings, float, layOutRows, reduction, requireSizes, rowText, vectorPrelude } from "./rows.ts";

export interface RmsNormSizes {
  readonly rows: number;
  readonly columns: number;
  /** Multiply by `1 + weight` (Gemma), so that a weight of zero is neutral. @default {false} */
  readonly unitOffset?: boolean;
}

const gain = (unitOffset: boolean) => unitOffset ? "(1f + weight[c])" : "weight[c]";

/**
 * `y = x / sqrt(mean(x²) + epsilon) · weight`, row by row.
 *
 * Operands: x `[rows, columns]`, weight `[columns]` → y `[rows, columns]`, inverse `[rows]` (one over the root mean
 * square, for the backward pass).
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { rmsNormForward } from "./rms_norm.ts";
 * const y = new Float32Array(2), inverse = new Float32Array(1);
 * rmsNormForward({ rows: 1, columns: 2, epsilon: 0 }).reference([
 *   new Float32Array([3, 4]), new Float32Array([1, 1]), y, inverse,
 * ]);
 * console.assert(Math.abs(y[0] - 3 / Math.sqrt(12.5)) < 1e-6);
 * ```
 */
export function rmsNormForward(
  { rows, columns, epsilon, unitOffset = false }: RmsNormSizes & { readonly epsilon: number },
): Kernel {
  requireSizes("norm.rms.forward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type: "f32", length: rows * columns, access: "read" },
    { name: "weight", type: "f32", length: columns, access: "read" },
    { name: "y", type: "f32", length: rows * columns, access: "write" },
    { name: "inverse", type: "f32", length: rows, access: "write" },
  ];
  return {
    name: "norm.rms.forward",
    operands,
    cost: { flops: 4 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rmsNormForward({ rows, columns, epsilon, unitOffset }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 1 }, traits);
      const { open, first, again } = rowText(layout, { v: "x[base + c]" });
      const code = `${vectorPrelude(layout.width)}
${bindings(operands, { x: "V", weight: "V", y: "V" })}
${reduction(layout, { name: "rowSum" })}
${open}
  var squares = V();
  ${first("squares += v * v;")}
  let scale = inverseSqrt(rowSum(total(squares), lane) / ${float(columns)} + ${float(epsilon)});
  if (lane == 0u) { inverse[row] = scale; }
  ${again(`y[base + c] = v * scale * ${gain(unitOffset)};`)}
}
`;
      return [{ code, workgroups: layout.workgroups, operands: [0, 1, 2, 3] }];
    },
  };
}

/**
 * Gradient of {@linkcode rmsNormForward} with respect to x.
 *
 * Operands: x `[rows, columns]`, weight `[columns]`, inverse `[rows]`, dY `[rows, columns]` → dX `[rows, columns]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function rmsNormBackward({ rows, columns, unitOffset = false }: RmsNormSizes): Kernel {
  requireSizes("norm.rms.backward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type: "f32", length: rows * columns, access: "read" },
    { name: "weight", type: "f32", length: columns, access: "read" },
    { name: "inverse", type: "f32", length: rows, access: "read" },
    { name: "dY", type: "f32", length: rows * columns, access: "read" },
    { name: "dX", type: "f32", length: rows * columns, access: "write" },
  ];
  return {
    name: "norm.rms.backward",
    operands,
    cost: { flops: 6 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rmsNormBackward({ rows, columns, unitOffset }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 2 }, traits);
      const { open, first, again } = rowText(layout, { v: "x[base + c]", g: `dY[base + c] * ${gain(unitOffset)}` });
      // x·inverse before the sum and not inverse³ after it: the cube overflows for rows that are nearly zero.
      const code = `${vectorPrelude(layout.width)}
${bindings(operands, { x: "V", weight: "V", dY: "V", dX: "V" })}
${reduction(layout, { name: "rowSum" })}
${open}
  let scale = inverse[row];
  var products = V();
  ${first("products += g * (v * scale);")}
  let back = rowSum(total(products), lane) / ${float(columns)};
  ${again("dX[base + c] = scale * (g - v * scale * back);")}
}
`;
      return [{ code, workgroups: layout.workgroups, operands: [0, 1, 2, 3, 4] }];
    },
  };
}

/**
 * Gradient of {@linkcode rmsNormForward} with respect to its weight (the same with and without `unitOffset`).
 *
 * Operands: x `[rows, columns]`, inverse `[rows]`, dY `[rows, columns]` → dWeight `[columns]`, written, or added to where
 * `accumulate` is set; then scratch for partial sums where rows are many.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function rmsNormWeightGradient(
  { rows, columns, accumulate }: { readonly rows: number; readonly columns: number; readonly accumulate: boolean },
): Kernel {
  requireSizes("norm.rms.weightGradient", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type: "f32", length: rows * columns, access: "read" },
    { name: "inverse", type: "f32", length: rows, access: "read" },
    { name: "dY", type: "f32", length: rows * columns, access: "read" },
    { name: "dWeight", type: "f32", length: columns, access: accumulate ? "update" : "write" },
    ...columnScratch(rows, columns, 1),
  ];
  const terms = { dWeight: "dY[i] * (x[i] * inverse[row])" };
  return {
    name: "norm.rms.weightGradient",
    operands,
    cost: { flops: 3 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rmsNormWeightGradient({ rows, columns, accumulate }, views),
    passes: () => columnSumPasses({ rows, columns, accumulate, operands, terms, perRow: ["inverse"] }),
  };
}
