/** Reductions, summed in `f32`: sums over rows (bias gradients) and the squared norm (gradient clipping, finiteness). */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import type { Stored } from "../storage.ts";
import { columnSumReference, squaredNormReference } from "./reference.ts";
import { columnScratch, columnSumPasses } from "../norm/column_sums.ts";
import { normGroups, squaredNormPasses } from "./wgsl.ts";

/** `type` is that of x; the sums are `f32`. */
export interface ColumnSumOptions extends Stored {
  readonly rows: number;
  readonly columns: number;
  /** Adds to y instead of overwriting it. @default {false} */
  readonly accumulate?: boolean;
}

/** Operands x (rows, columns) (read) → y (columns) (write, or update when accumulating), partial (scratch). */
export function columnSum({ rows, columns, accumulate = false, type = "f32" }: ColumnSumOptions): Kernel {
  const operands: Operand[] = [
    { name: "x", type, length: rows * columns, access: "read" },
    { name: "y", type: "f32", length: columns, access: accumulate ? "update" : "write" },
    ...columnScratch(rows, columns, 1),
  ];
  return {
    name: "reduce.columnSum",
    operands,
    cost: { flops: rows * columns, bytes: leastBytes(operands) },
    reference: ([x, y]) => columnSumReference(x, y, rows, accumulate),
    passes: (traits) =>
      columnSumPasses(traits, {
        rows,
        columns,
        accumulate,
        operands,
        terms: ({ load }) => ({ y: load("x", "i") }),
        perRow: [],
      }),
  };
}

/**
 * Operands x (read) → out f32[1] (write), partial (scratch): the sum of squares, the same bits at every run. An infinity
 * or NaN anywhere makes the result not finite, and so does a sum beyond `f32`'s range.
 */
export function squaredNorm({ length, type = "f32" }: Stored & { readonly length: number }): Kernel {
  const operands: Operand[] = [
    { name: "x", type, length, access: "read" },
    { name: "out", type: "f32", length: 1, access: "write" },
    { name: "partial", type: "f32", length: normGroups(length), access: "scratch" },
  ];
  return {
    name: "reduce.squaredNorm",
    operands,
    cost: { flops: 2 * length, bytes: leastBytes(operands) },
    reference: ([x, out]) => squaredNormReference(x, out),
    passes: (traits) => squaredNormPasses(traits, length, type),
  };
}
