/** Cuts a run of columns out of every row. */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { itemText, requireSizes, vectorPrelude } from "../norm/rows.ts";
import { storage, type Stored } from "../storage.ts";
import { sliceReference } from "./reference.ts";

export interface SliceSizes extends Stored {
  /** Rows. */
  readonly outer: number;
  /** Columns of x. */
  readonly whole: number;
  /** First column of x that y takes. */
  readonly first: number;
  /** Columns of y. */
  readonly part: number;
}

/**
 * Operands x `[outer, whole]` (read) → y `[outer, part]` (write): `y[o, i] = x[o, first + i]`.
 *
 * @throws {RangeError} when a size is not a positive whole number, or the run leaves the row
 *
 * @example
 * ```ts
 * import { slice } from "./mod.ts";
 * const y = new Float32Array(2);
 * slice({ outer: 2, whole: 3, first: 2, part: 1 }).reference([new Float32Array([0, 1, 2, 3, 4, 5]), y]);
 * console.assert(y.join() === "2,5");
 * ```
 */
export function slice(sizes: SliceSizes): Kernel {
  const { outer, whole, first, part, type = "f32" } = sizes;
  requireSizes("slice", { outer, whole, part });
  if (!(Number.isSafeInteger(first) && first >= 0 && first + part <= whole)) {
    throw new RangeError(`Cannot make slice: columns ${first} to ${first + part} are not of a row of ${whole}`);
  }
  const operands: readonly Operand[] = [
    { name: "x", type, length: outer * whole, access: "read" },
    { name: "y", type, length: outer * part, access: "write" },
  ];
  return {
    name: "slice",
    operands,
    cost: { flops: 0, bytes: leastBytes([{ ...operands[0], length: outer * part }, operands[1]]) },
    reference: (views) => sliceReference(sizes, views),
    passes(traits) {
      const width = [whole, first, part].every((size) => size % 4 === 0) ? 4 : 1, vectors = part / width;
      const { open, workgroups } = itemText(outer * vectors);
      const { directives, bindings, load, store } = storage(traits, operands, { x: "V", y: "V" }, width);
      const code = `${directives}${vectorPrelude(width)}
${bindings}
${open}
  let at = i / ${vectors}u * ${whole / width}u + ${first / width}u + i % ${vectors}u;
  ${store("y", "i", load("x", "at"))}
}
`;
      return [{ code, workgroups, operands: [0, 1] }];
    },
  };
}
