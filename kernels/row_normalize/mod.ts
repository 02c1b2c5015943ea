/** Rows of a matrix brought to length 1: the weight of a normalised head. */
import type { FloatType } from "../host.ts";
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { subgroupPrelude } from "../matmul/dialect.ts";
import { float, layOutRows, reduction, requireSizes, rowText, vectorPrelude } from "../norm/rows.ts";
import { storage, type Stored } from "../storage.ts";
import * as reference from "./reference.ts";

/** `type` is that of w and y; the gradients are a weight's, `f32`. */
export interface RowNormalizeSizes extends Stored {
  readonly rows: number;
  readonly columns: number;
}

/**
 * `y = w / max(‖w‖, 1e-12)`, row by row.
 *
 * Operands: w `[rows, columns]` → y `[rows, columns]`, inverse `[rows]` (what each row was multiplied by).
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { rowNormalizeForward } from "./mod.ts";
 * const y = new Float32Array(2), inverse = new Float32Array(1);
 * rowNormalizeForward({ rows: 1, columns: 2 }).reference([new Float32Array([3, 4]), y, inverse]);
 * console.assert(Math.abs(y[0] - 0.6) < 1e-6 && Math.abs(inverse[0] - 0.2) < 1e-6);
 * ```
 */
export function rowNormalizeForward({ rows, columns, type = "f32" }: RowNormalizeSizes): Kernel {
  requireSizes("rowNormalize.forward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "w", type, length: rows * columns, access: "read" },
    { name: "y", type, length: rows * columns, access: "write" },
    { name: "inverse", type: "f32", length: rows, access: "write" },
  ];
  return {
    name: "rowNormalize.forward",
    operands,
    cost: { flops: 3 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rowNormalizeForward({ rows, columns }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 1 }, traits);
      const elements = { w: "V", y: "V" };
      const { directives, bindings, load, store, bound } = storage(traits, operands, elements, layout.width, ["w"]);
      const { open, first, again } = rowText(layout, { v: load("w", "base + c") });
      const code = `${directives}${subgroupPrelude(traits)}${vectorPrelude(layout.width)}
${bindings}
${reduction(layout, { name: "rowSum" }, traits)}
${open}
  var squares = V();
  ${first("squares += v * v;")}
  let scale = 1f / max(sqrt(rowSum(total(squares), lane)), ${float(reference.smallestNorm)});
  if (lane == 0u) { inverse[row] = scale; }
  ${again(store("y", "base + c", "v * scale"))}
}
`;
      return [{ code, workgroups: layout.workgroups, ...bound([0, 1, 2]) }];
    },
  };
}

/**
 * Gradient of {@linkcode rowNormalizeForward}.
 *
 * Operands: y `[rows, columns]`, inverse `[rows]`, dY `[rows, columns]` → dW `[rows, columns]`, written, or added to
 * where `accumulate` is set.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function rowNormalizeBackward(
  { rows, columns, accumulate, type = "f32", gradientType = "f32" }: RowNormalizeSizes & {
    readonly accumulate: boolean;
    /** Of dY. @default {"f32"} */
    readonly gradientType?: FloatType;
  },
): Kernel {
  requireSizes("rowNormalize.backward", { rows, columns });
  const operands: readonly Operand[] = [
    { name: "y", type, length: rows * columns, access: "read" },
    { name: "inverse", type: "f32", length: rows, access: "read" },
    { name: "dY", type: gradientType, length: rows * columns, access: "read" },
    { name: "dW", type: "f32", length: rows * columns, access: accumulate ? "update" : "write" },
  ];
  return {
    name: "rowNormalize.backward",
    operands,
    cost: { flops: 5 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rowNormalizeBackward({ rows, columns, accumulate }, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 2 }, traits);
      const { directives, bindings, load } = storage(traits, operands, { y: "V", dY: "V", dW: "V" }, layout.width);
      const { open, first, again } = rowText(layout, { v: load("y", "base + c"), g: load("dY", "base + c") });
      const code = `${directives}${subgroupPrelude(traits)}${vectorPrelude(layout.width)}
${bindings}
${reduction(layout, { name: "rowSum" }, traits)}
${open}
  var products = V();
  ${first("products += v * g;")}
  let scale = inverse[row];
  // A norm below the smallest was replaced by a constant, through which nothing flows back.
  let product = select(rowSum(total(products), lane), 0f, scale > ${float(0.999 / reference.smallestNorm)});
  ${again(`dW[base + c] ${accumulate ? "+=" : "="} scale * (g - v * product);`)}
}
`;
      return [{ code, workgroups: layout.workgroups, operands: [0, 1, 2, 3] }];
    },
  };
}
