/**
 * The matrix product, with bias, residual and accumulation. Versions: `workgroup_tiles`, `subgroup_broadcast`,
 * `matrix_units`.
 */
import { choose } from "../choices.ts";
import { type DeviceTraits, type Kernel, leastBytes, type Operand, type Pass } from "../kernel.ts";
import { requireSizes } from "../norm/rows.ts";
import { formsOf, questionOf } from "./candidates.ts";
import { largestOperand } from "./matrix_units.ts";
import * as reference from "./reference.ts";
import { matmulOperands, type MatmulOptions, type MatmulShape, shapeOf } from "./shape.ts";
import { tilingOf } from "./workgroup_tiles.ts";

export type { MatmulOptions } from "./shape.ts";

/**
 * C = A B, row by row in memory: A `[m, k]`, B `[k, n]`, C `[m, n]`, each stored transposed where the options say so,
 * each with a leading dimension `batch`. Each operand is stored as `types` says; sums are in `f32`, and rounded once where
 * C is stored.
 *
 * Operands: a, b, [bias `[n]`], [residual, shaped as c], c (written, or added to with `accumulate`), and scratch where
 * the depth is split: a C of few tiles and long sums, as gradients of weights are.
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { matmul } from "./mod.ts";
 * const linear = matmul({ m: 1, n: 2, k: 3, transposeB: true });
 * const y = new Float32Array(2);
 * linear.reference([new Float32Array([1, 2, 3]), new Float32Array([1, 0, 0, 1, 1, 1]), y]);
 * console.assert(y[0] === 1 && y[1] === 6);
 * ```
 */
export function matmul(options: MatmulOptions): Kernel {
  const shape = shapeOf(options);
  const { m, n, k, batch, transposeA, transposeB } = shape;
  requireSizes("matmul", { m, n, k, batch });
  const operands = matmulOperands(shape);
  const { splits } = tilingOf(shape);
  if (splits > 1) operands.push({ name: "partial", type: "f32", length: splits * batch * m * n, access: "scratch" });
  if (unitsOf(shape) !== "none" && unitsOf(shape) !== "halves") operands.push(largestOperand);
  return {
    name: `matmul.${transposeA ? "t" : "n"}${transposeB ? "t" : "n"}`,
    shape: `${batch > 1 ? `${batch} x ` : ""}${m} x ${n} x ${k}`,
    operands,
    cost: { flops: 2 * batch * m * n * k, bytes: leastBytes(operands) },
    reference: (views) => reference.matmul(shape, views),
    passes: (traits) => passesFor(shape, operands, splits, traits),
  };
}

/**
 * How matrix units may serve a product: on `f16` as it is, on `bf16` scaled to `f16`, on `f32` split in two parts where
 * the options ask for it.
 */
function unitsOf({ types, split }: MatmulShape): "halves" | "scaled" | "split" | "none" {
  const { a = "f32", b = "f32" } = types;
  if (a !== b) return "none";
  return a === "f16" ? "halves" : a === "bf16" ? "scaled" : split ? "split" : "none";
}

/** The form chosen for a device, else the best one known. All but those on matrix units take every operand in every type. */
function passesFor(shape: MatmulShape, operands: readonly Operand[], splits: number, traits: DeviceTraits): Pass[] {
  const use = unitsOf(shape), onUnits = traits.features.matrixUnits && use !== "none";
  const forms = formsOf(shape, operands, traits, { units: onUnits ? use === "split" ? 2 : 1 : undefined, splits });
  return forms.get(choose(traits, questionOf(shape), [...forms.keys()]))!();
}
