/** Layer norm with weight and bias (Ba, Kiros and Hinton 2016, "Layer Normalization"). */
import type { FloatType } from "../host.ts";
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { type Storage, storage, type Stored } from "../storage.ts";
import { columnScratch, columnSumPasses } from "./column_sums.ts";
import { subgroupPrelude } from "../matmul/dialect.ts";
import * as reference from "./reference.ts";
import { float, layOutRows, reduction, requireSizes, rowText, vectorPrelude } from "./rows.ts";

export interface LayerNormSizes extends Stored {
  readonly rows: number;
  readonly columns: number;
  /** Of weight and bias. @default {"f32"} */
  readonly weightType?: FloatType;
}

/**
 * `y = (x − mean) / sqrt(variance + epsilon) · weight + bias`, row by row; the variance divides by `columns`.
 *
 * Operands: x `[rows, columns]`, weight `[columns]`, bias `[columns]` → y `[rows, columns]`, mean `[rows]`, inverse
 * `[rows]` (one over the standard deviation).
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function layerNormForward(
  { rows, columns, epsilon, type = "f32", weightType = "f32" }: LayerNormSizes & { readonly epsilon: number },
): Kernel {
  requireSizes("norm.layer.forward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "weight", type: weightType, length: columns, access: "read" },
    { name: "bias", type: weightType, length: columns, access: "read" },
    { name: "y", type, length: rows * columns, access: "write" },
    { name: "mean", type: "f32", length: rows, access: "write" },
    { name: "inverse", type: "f32", length: rows, access: "write" },
  ];
  return {
    name: "norm.layer.forward",
    operands,
    cost: { flops: 7 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.layerNormForward({ rows, columns, epsilon }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 1 }, traits);
      const elements = { x: "V", weight: "V", bias: "V", y: "V" };
      const imaged = ["x", "weight", "bias"];
      const { directives, bindings, load, store, bound } = storage(traits, operands, elements, layout.width, imaged);
      const { open, first, again } = rowText(layout, { v: load("x", "base + c") });
      // Corrected two-pass algorithm (Chan, Golub and LeVeque 1983): squares about a first mean, since mean(x²) − mean²
      // cancels where the mean is large, and the rest that the first mean left over.
      const code = `${directives}${subgroupPrelude(traits)}${vectorPrelude(layout.width)}
${bindings}
${reduction(layout, { name: "rowSum", type: "vec2f" }, traits)}
${open}
  var sums = V();
  ${first("sums += v;")}
  let near = rowSum(vec2f(total(sums), 0f), lane).x / ${float(columns)};
  var rests = V();
  var squares = V();
  ${again("rests += v - near; squares += (v - near) * (v - near);")}
  let means = rowSum(vec2f(total(rests), total(squares)), lane) / ${float(columns)};
  let center = near + means.x;
  let scale = inverseSqrt(max(means.y - means.x * means.x, 0f) + ${float(epsilon)});
  if (lane == 0u) {
    mean[row] = center;
    inverse[row] = scale;
  }
  ${again(store("y", "base + c", `(v - center) * scale * ${load("weight", "c")} + ${load("bias", "c")}`))}
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2, 3, 4, 5]) }];
    },
  };
}

/**
 * Gradient of {@linkcode layerNormForward} with respect to x.
 *
 * Operands: x `[rows, columns]`, weight `[columns]`, mean `[rows]`, inverse `[rows]`, dY `[rows, columns]` → dX
 * `[rows, columns]`, written, or added to where `accumulate` is set.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function layerNormBackward(
  { rows, columns, accumulate = false, type = "f32", weightType = "f32" }:
    & LayerNormSizes
    & { readonly accumulate?: boolean },
): Kernel {
  requireSizes("norm.layer.backward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "weight", type: weightType, length: columns, access: "read" },
    { name: "mean", type: "f32", length: rows, access: "read" },
    { name: "inverse", type: "f32", length: rows, access: "read" },
    { name: "dY", type, length: rows * columns, access: "read" },
    { name: "dX", type, length: rows * columns, access: accumulate ? "update" : "write" },
  ];
  return {
    name: "norm.layer.backward",
    operands,
    cost: { flops: 9 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.layerNormBackward({ rows, columns, accumulate }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: accumulate ? 3 : 2 }, traits);
      const elements = { x: "V", weight: "V", dY: "V", dX: "V" };
      const imaged = ["x", "weight", "dY", "dX"];
      const { directives, bindings, load, store, bound } = storage(traits, operands, elements, layout.width, imaged);
      const { open, first, again } = rowText(layout, {
        n: `(${load("x", "base + c")} - center) * scale`,
        g: `${load("dY", "base + c")} * ${load("weight", "c")}`,
        ...(accumulate && { other: load("dX", "base + c") }),
      });
      const code = `${directives}${subgroupPrelude(traits)}${vectorPrelude(layout.width)}
${bindings}
${reduction(layout, { name: "rowSum", type: "vec2f" }, traits)}
${open}
  let center = mean[row];
  let scale = inverse[row];
  var sums = V();
  var products = V();
  ${first("sums += g; products += g * n;")}
  let means = rowSum(vec2f(total(sums), total(products)), lane) / ${float(columns)};
  ${again(store("dX", "base + c", `${accumulate ? "other + " : ""}scale * (g - means.x - n * means.y)`))}
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2, 3, 4, 5]) }];
    },
  };
}

/**
 * Gradients of {@linkcode layerNormForward} with respect to its weight and bias.
 *
 * Operands: x `[rows, columns]`, mean `[rows]`, inverse `[rows]`, dY `[rows, columns]` → dWeight `[columns]`, dBias
 * `[columns]`, written, or added to where `accumulate` is set; then scratch for partial sums where rows are many.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function layerNormWeightGradient(
  { rows, columns, accumulate, type = "f32" }: LayerNormSizes & { readonly accumulate: boolean },
): Kernel {
  requireSizes("norm.layer.weightGradient", { rows, columns });
  const access = accumulate ? "update" : "write";
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "mean", type: "f32", length: rows, access: "read" },
    { name: "inverse", type: "f32", length: rows, access: "read" },
    { name: "dY", type, length: rows * columns, access: "read" },
    { name: "dWeight", type: "f32", length: columns, access },
    { name: "dBias", type: "f32", length: columns, access },
    ...columnScratch(rows, columns, 2),
  ];
  const terms = ({ load }: Storage) => ({
    dWeight: `${load("dY", "i")} * ((${load("x", "i")} - mean[row]) * inverse[row])`,
    dBias: load("dY", "i"),
  });
  return {
    name: "norm.layer.weightGradient",
    operands,
    cost: { flops: 5 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.layerNormWeightGradient({ rows, columns, accumulate }, views),
    passes: (traits) =>
      columnSumPasses(traits, { rows, columns, accumulate, operands, terms, perRow: ["mean", "inverse"] }),
  };
}
