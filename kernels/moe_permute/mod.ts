/**
 * Moves tokens to the rows of their experts and back. Both ways every output is gathered by whoever writes it, so there
 * is nothing to add by atomics.
 *
 * Shapes: T tokens, k choices a token, R rows of the experts, H columns. `row` and `slot` are those of `moe_dispatch`; a
 * number past the last choice or row stands for none, as `0xffffffff` does.
 */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { itemText, layOutRows, reduction, requireSizes, rowText, vectorPrelude } from "../norm/rows.ts";
import { storage, type Stored } from "../storage.ts";
import * as reference from "./reference.ts";

export interface PermuteSizes extends Stored {
  readonly tokens: number;
  readonly choices: number;
  /** Rows of the experts together. */
  readonly rows: number;
  readonly columns: number;
}

const sizesOf = ({ tokens, choices, rows, columns }: PermuteSizes) => ({ tokens, choices, rows, columns });

/**
 * `y[r] = x[token in row r]`, times the choice's weight where there are some; zeros in an empty row.
 *
 * Operands: x `[T, H]`, row u32 `[R]`, [weight `f32` `[T, k]`] → y `[R, H]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { toRows } from "./mod.ts";
 * const y = new Float32Array(3);
 * const kernel = toRows({ tokens: 2, choices: 1, rows: 3, columns: 1 });
 * kernel.reference([new Float32Array([7, 8]), new Uint32Array([1, 0xffff_ffff, 0]), y]);
 * console.assert(y.join() === "8,0,7");
 * ```
 */
export function toRows(sizes: PermuteSizes & { readonly weighted?: boolean }): Kernel {
  const { tokens, choices, rows, columns, weighted = false, type = "f32" } = sizes;
  requireSizes("moe.toRows", sizesOf(sizes));
  const operands: readonly Operand[] = [
    { name: "x", type, length: tokens * columns, access: "read" },
    { name: "row", type: "u32", length: rows, access: "read" },
    ...(weighted ? [{ name: "weight", type: "f32", length: tokens * choices, access: "read" } as const] : []),
    { name: "y", type, length: rows * columns, access: "write" },
  ];
  return {
    name: "moe.toRows",
    shape: `${tokens} x ${columns} to ${rows}`,
    operands,
    cost: { flops: weighted ? rows * columns : 0, bytes: leastBytes(operands) },
    reference: (views) => reference.toRows(sizes, weighted, views),
    passes(traits) {
      const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
      const { open, workgroups } = itemText(rows * vectors);
      const { directives, bindings, load, store } = storage(traits, operands, { x: "V", y: "V" }, width);
      const code = `${directives}${vectorPrelude(width)}
${bindings}
${open}
  let at = row[i / ${vectors}u];
  var found = V();
  if (at < ${tokens * choices}u) {
    let from_ = at / ${choices}u * ${vectors}u + i % ${vectors}u;
    found = ${load("x", "from_")}${weighted ? " * weight[at]" : ""};
  }
  ${store("y", "i", "found")}
}
`;
      return [{ code, workgroups, operands: operands.map((_, index) => index) }];
    },
  };
}

/**
 * `y[t] = Σ_j weight[t, j] x[row of choice j]`, over the choices that were not dropped; with weights of 1 where there are
 * none. With weights it is what experts' outputs become; without, the gradient of {@linkcode toRows}.
 *
 * Operands: x `[R, H]`, slot u32 `[T, k]`, [weight `f32` `[T, k]`] → y `[T, H]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function fromRows(sizes: PermuteSizes & { readonly weighted?: boolean }): Kernel {
  const { tokens, choices, rows, columns, weighted = false, type = "f32" } = sizes;
  requireSizes("moe.fromRows", sizesOf(sizes));
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "slot", type: "u32", length: tokens * choices, access: "read" },
    ...(weighted ? [{ name: "weight", type: "f32", length: tokens * choices, access: "read" } as const] : []),
    { name: "y", type, length: tokens * columns, access: "write" },
  ];
  return {
    name: "moe.fromRows",
    shape: `${rows} x ${columns} to ${tokens}`,
    operands,
    cost: { flops: 2 * tokens * choices * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.fromRows(sizes, weighted, views),
    passes(traits) {
      const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
      const { open, workgroups } = itemText(tokens * vectors);
      const { directives, bindings, load, store } = storage(traits, operands, { x: "V", y: "V" }, width);
      const code = `${directives}${vectorPrelude(width)}
${bindings}
${open}
  let first = i / ${vectors}u * ${choices}u;
  var sum = V();
  for (var at = first; at < first + ${choices}u; at++) {
    let found = slot[at];
    if (found >= ${rows}u) { continue; }
    let from_ = found * ${vectors}u + i % ${vectors}u;
    sum += ${load("x", "from_")}${weighted ? " * weight[at]" : ""};
  }
  ${store("y", "i", "sum")}
}
`;
      return [{ code, workgroups, operands: operands.map((_, index) => index) }];
    },
  };
}

/**
 * Gradient of {@linkcode fromRows} with respect to the weights: `dWeight[t, j] = x[row of choice j] · dY[t]`; 0 for a
 * choice that was dropped.
 *
 * Operands: x `[R, H]`, slot u32 `[T, k]`, dY `[T, H]` → dWeight `f32` `[T, k]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function rowWeightGradient(sizes: PermuteSizes): Kernel {
  const { tokens, choices, rows, columns, type = "f32" } = sizes;
  requireSizes("moe.rowWeightGradient", sizesOf(sizes));
  const operands: readonly Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "slot", type: "u32", length: tokens * choices, access: "read" },
    { name: "dY", type, length: tokens * columns, access: "read" },
    { name: "dWeight", type: "f32", length: tokens * choices, access: "write" },
  ];
  return {
    name: "moe.rowWeightGradient",
    operands,
    cost: { flops: 2 * tokens * choices * columns, bytes: leastBytes(operands) },
    reference: (views) => reference.weightGradient(sizes, views),
    passes(traits) {
      const layout = layOutRows({ rows: tokens * choices, columns, values: 2, once: "read" }, traits);
      const { directives, bindings, load } = storage(traits, operands, { x: "V", dY: "V" }, layout.width);
      const { open, first } = rowText(layout, {
        v: load("x", "found * vectors + c"),
        d: load("dY", `row / ${choices}u * vectors + c`),
      });
      const code = `${directives}${vectorPrelude(layout.width)}
${bindings}
const vectors = ${layout.vectors}u;
${reduction(layout, { name: "rowSum" })}
${open}
  let dropped = slot[row] >= ${rows}u;
  let found = select(slot[row], 0u, dropped); // any row: its product is not used
  var products = V();
  ${first("products += v * d;")}
  let sum = rowSum(total(products), lane);
  if (lane == 0u) { dWeight[row] = select(sum, 0f, dropped); }
}
`;
      return [{ code, workgroups: layout.workgroups, operands: [0, 1, 2, 3] }];
    },
  };
}
