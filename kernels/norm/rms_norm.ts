/** Root-mean-square norm (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"). */
import type { FloatType } from "../host.ts";
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { columnScratch, columnSumPasses } from "./column_sums.ts";
import { subgroupPrelude } from "../matmul/dialect.ts";
import * as reference from "./reference.ts";
import { type Storage, storage, type Stored } from "../storage.ts";
import { float, layOutRows, reduction, requireSizes, rowText, vectorPrelude } from "./rows.ts";

export interface RmsNormSizes extends Stored {
  readonly rows: number;
  readonly columns: number;
  /** Multiply by `1 + weight` (Gemma), so that a weight of zero is neutral. @default {false} */
  readonly unitOffset?: boolean;
  /** @default {"f32"} */
  readonly weightType?: FloatType;
}

const gain = (unitOffset: boolean, load: Storage["load"]) =>
  unitOffset ? `(1f + ${load("weight", "c")})` : load("weight", "c");

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
  { rows, columns, epsilon, unitOffset = false, type = "f32", weightType = "f32" }:
    & RmsNormSizes
    & { readonly epsilon: number },
): Kernel {
  requireSizes("norm.rms.forward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "weight", type: weightType, length: columns, access: "read" },
    { name: "y", type, length: rows * columns, access: "write" },
    { name: "inverse", type: "f32", length: rows, access: "write" },
  ];
  return {
    name: "norm.rms.forward",
    operands,
    cost: { flops: 4 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rmsNormForward({ rows, columns, epsilon, unitOffset }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 1 }, traits);
      const { directives, bindings, load, store, bound } = storage(
        traits,
        operands,
        { x: "V", weight: "V", y: "V" },
        layout.width,
        ["x", "weight"],
      );
      const { open, first, again } = rowText(layout, { v: load("x", "base + c") });
      const code = `${directives}${subgroupPrelude(traits)}${vectorPrelude(layout.width)}
${bindings}
${reduction(layout, { name: "rowSum" }, traits)}
${open}
  var squares = V();
  ${first("squares += v * v;")}
  let scale = inverseSqrt(rowSum(total(squares), lane) / ${float(columns)} + ${float(epsilon)});
  if (lane == 0u) { inverse[row] = scale; }
  ${again(store("y", "base + c", `v * scale * ${gain(unitOffset, load)}`))}
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2, 3]) }];
    },
  };
}

/**
 * Gradient of {@linkcode rmsNormForward} with respect to x.
 *
 * Operands: x `[rows, columns]`, weight `[columns]`, inverse `[rows]`, dY `[rows, columns]` → dX `[rows, columns]`, written,
 * or added to where `accumulate` is set: what else flows back to x is there then, and is read once.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function rmsNormBackward(
  { rows, columns, unitOffset = false, accumulate = false, type = "f32", weightType = "f32" }:
    & RmsNormSizes
    & { readonly accumulate?: boolean },
): Kernel {
  requireSizes("norm.rms.backward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "weight", type: weightType, length: columns, access: "read" },
    { name: "inverse", type: "f32", length: rows, access: "read" },
    { name: "dY", type, length: rows * columns, access: "read" },
    { name: "dX", type, length: rows * columns, access: accumulate ? "update" : "write" },
  ];
  return {
    name: "norm.rms.backward",
    operands,
    cost: { flops: 6 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rmsNormBackward({ rows, columns, unitOffset, accumulate }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: accumulate ? 3 : 2 }, traits);
      const elements = { x: "V", weight: "V", dY: "V", dX: "V" };
      const imaged = ["x", "weight", "dY", "dX"];
      const { directives, bindings, load, store, bound } = storage(traits, operands, elements, layout.width, imaged);
      const { open, first, again } = rowText(layout, {
        v: load("x", "base + c"),
        g: `${load("dY", "base + c")} * ${gain(unitOffset, load)}`,
        ...(accumulate && { other: load("dX", "base + c") }),
      });
      // x·inverse before the sum and not inverse³ after it: the cube overflows for rows that are nearly zero.
      const code = `${directives}${subgroupPrelude(traits)}${vectorPrelude(layout.width)}
${bindings}
${reduction(layout, { name: "rowSum" }, traits)}
${open}
  let scale = inverse[row];
  var products = V();
  ${first("products += g * (v * scale);")}
  let back = rowSum(total(products), lane) / ${float(columns)};
  ${again(store("dX", "base + c", `${accumulate ? "other + " : ""}scale * (g - v * scale * back)`))}
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2, 3, 4]) }];
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
  { rows, columns, accumulate, type = "f32" }: Stored & {
    readonly rows: number;
    readonly columns: number;
    readonly accumulate: boolean;
  },
): Kernel {
  requireSizes("norm.rms.weightGradient", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "inverse", type: "f32", length: rows, access: "read" },
    { name: "dY", type, length: rows * columns, access: "read" },
    { name: "dWeight", type: "f32", length: columns, access: accumulate ? "update" : "write" },
    ...columnScratch(rows, columns, 1),
  ];
  const terms = ({ load }: Storage) => ({ dWeight: `${load("dY", "i")} * (${load("x", "i")} * inverse[row])` });
  return {
    name: "norm.rms.weightGradient",
    operands,
    cost: { flops: 3 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rmsNormWeightGradient({ rows, columns, accumulate }, views),
    passes: (traits) => columnSumPasses(traits, { rows, columns, accumulate, operands, terms, perRow: ["inverse"] }),
  };
}
