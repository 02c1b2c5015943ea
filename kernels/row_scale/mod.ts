/** Rows of a matrix, each times a number of its own: how a shared expert joins the others. */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { layOutRows, reduction, requireSizes, rowText, vectorPrelude } from "../norm/rows.ts";
import { storage, type Stored } from "../storage.ts";
import * as reference from "./reference.ts";

export interface RowScaleSizes extends Stored {
  readonly rows: number;
  readonly columns: number;
  /** Numbers that each row has, and which of them counts. */
  readonly ways: number;
  readonly way: number;
  /** The number is the logistic function of what is given. */
  readonly sigmoid: boolean;
}

/** `f`, what the row is multiplied by, and `slope`, its derivative: 1 - f would cancel where f is nearly 1. */
const factorText = ({ ways, way, sigmoid }: RowScaleSizes) => `
  let z = factor[row * ${ways}u + ${way}u];
  ${
  sigmoid
    ? `let e = exp(-abs(z));
  let f = select(e, 1f, z >= 0f) / (1f + e);
  let slope = e / (1f + e) / (1f + e);`
    : "let f = z;\n  let slope = 1f;"
}`;

function check(name: string, { rows, columns, ways, way }: RowScaleSizes): void {
  requireSizes(name, { rows, columns, ways });
  if (!(Number.isSafeInteger(way) && way >= 0 && way < ways)) {
    throw new RangeError(`Cannot make ${name}: way ${way} is not one of 0 to ${ways - 1}`);
  }
}

/**
 * `y[r] = f(factor[r, way]) x[r]`, f being the identity or the logistic function.
 *
 * Operands: x `[rows, columns]`, factor `f32` `[rows, ways]` → y `[rows, columns]`.
 *
 * @throws {RangeError} when a size is not a positive whole number, or there is no such way
 *
 * @example
 * ```ts
 * import { rowScaleForward } from "./mod.ts";
 * const y = new Float32Array(2);
 * const kernel = rowScaleForward({ rows: 1, columns: 2, ways: 1, way: 0, sigmoid: true });
 * kernel.reference([new Float32Array([2, 4]), new Float32Array([0]), y]);
 * console.assert(y.join() === "1,2");
 * ```
 */
export function rowScaleForward(sizes: RowScaleSizes): Kernel {
  check("rowScale.forward", sizes);
  const { rows, columns, ways, type = "f32" } = sizes;
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "factor", type: "f32", length: rows * ways, access: "read" },
    { name: "y", type, length: rows * columns, access: "write" },
  ];
  return {
    name: "rowScale.forward",
    operands,
    cost: { flops: rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rowScaleForward(sizes, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 1, once: "written" }, traits);
      const { directives, bindings, load, store } = storage(traits, operands, { x: "V", y: "V" }, layout.width);
      const { open, first } = rowText(layout, { v: load("x", "base + c") });
      const code = `${directives}${vectorPrelude(layout.width)}
${bindings}
${open}
${factorText(sizes)}
  ${first(store("y", "base + c", "f * v"))}
}
`;
      return [{ code, workgroups: layout.workgroups, operands: [0, 1, 2] }];
    },
  };
}

/**
 * Gradient of {@linkcode rowScaleForward}; 0 for the ways that do not count.
 *
 * Operands: x `[rows, columns]`, factor `f32` `[rows, ways]`, dY `[rows, columns]` → dX `[rows, columns]`, dFactor `f32`
 * `[rows, ways]`.
 *
 * @throws {RangeError} when a size is not a positive whole number, or there is no such way
 */
export function rowScaleBackward(sizes: RowScaleSizes): Kernel {
  check("rowScale.backward", sizes);
  const { rows, columns, ways, way, type = "f32" } = sizes;
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "factor", type: "f32", length: rows * ways, access: "read" },
    { name: "dY", type, length: rows * columns, access: "read" },
    { name: "dX", type, length: rows * columns, access: "write" },
    { name: "dFactor", type: "f32", length: rows * ways, access: "write" },
  ];
  return {
    name: "rowScale.backward",
    operands,
    cost: { flops: 3 * rows * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.rowScaleBackward(sizes, views),
    passes(traits) {
      const layout = layOutRows({ rows, columns, values: 2, once: "written" }, traits);
      const elements = { x: "V", dY: "V", dX: "V" };
      const { directives, bindings, load, store } = storage(traits, operands, elements, layout.width);
      const { open, first } = rowText(layout, { v: load("x", "base + c"), d: load("dY", "base + c") });
      const code = `${directives}${vectorPrelude(layout.width)}
${bindings}
${reduction(layout, { name: "rowSum" })}
${open}
${factorText(sizes)}
  var products = V();
  ${first(`products += v * d; ${store("dX", "base + c", "f * d")}`)}
  let sum = rowSum(total(products), lane);
  if (lane == 0u) {
    for (var w = 0u; w < ${ways}u; w++) { dFactor[row * ${ways}u + w] = 0f; }
    dFactor[row * ${ways}u + ${way}u] = sum * slope;
  }
}
`;
      return [{ code, workgroups: layout.workgroups, operands: [0, 1, 2, 3, 4] }];
    },
  };
}
