/** Cuts a run of columns out of every row, and puts one back among zeros. */
import { type DeviceTraits, type Kernel, leastBytes, type Operand, type Pass } from "../kernel.ts";
import { itemText, requireSizes, vectorPrelude } from "../norm/rows.ts";
import { type Storage, storage, type Stored } from "../storage.ts";
import { sliceReference, unsliceReference } from "./reference.ts";

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
  const { outer, whole, part, type = "f32" } = sizes;
  checkSizes("slice", sizes);
  const operands: readonly Operand[] = [
    { name: "x", type, length: outer * whole, access: "read" },
    { name: "y", type, length: outer * part, access: "write" },
  ];
  return {
    name: "slice",
    operands,
    cost: { flops: 0, bytes: leastBytes([{ ...operands[0], length: outer * part }, operands[1]]) },
    reference: (views) => sliceReference(sizes, views),
    passes: (traits) => [
      pass(traits, sizes, operands, part, ({ store, load }, { whole, first, part }) => `
  let at = i / ${part}u * ${whole}u + ${first}u + i % ${part}u;
  ${store("y", "i", load("x", "at"))}`),
    ],
  };
}

/**
 * The gradient of {@linkcode slice}: x in its place, zeros elsewhere.
 *
 * Operands x `[outer, part]` (read) → y `[outer, whole]` (write).
 *
 * @throws {RangeError} when a size is not a positive whole number, or the run leaves the row
 */
export function unslice(sizes: SliceSizes): Kernel {
  const { outer, whole, part, type = "f32" } = sizes;
  checkSizes("unslice", sizes);
  const operands: readonly Operand[] = [
    { name: "x", type, length: outer * part, access: "read" },
    { name: "y", type, length: outer * whole, access: "write" },
  ];
  return {
    name: "unslice",
    operands,
    cost: { flops: 0, bytes: leastBytes(operands) },
    reference: (views) => unsliceReference(sizes, views),
    passes: (traits) => [
      pass(traits, sizes, operands, whole, ({ store, load }, { whole, first, part }) => `
  let column = i % ${whole}u - ${first}u; // before the run it wraps to a number past it
  let here = column < ${part}u;
  let at = i / ${whole}u * ${part}u + select(0u, column, here);
  ${store("y", "i", `select(V(), ${load("x", "at")}, here)`)}`),
    ],
  };
}

function checkSizes(name: string, { outer, whole, first, part }: SliceSizes): void {
  requireSizes(name, { outer, whole, part });
  if (Number.isSafeInteger(first) && first >= 0 && first + part <= whole) return;
  throw new RangeError(`Cannot make ${name}: columns ${first} to ${first + part} are not of a row of ${whole}`);
}

/** A pass over the elements of y, `columns` a row; sizes are handed on in vectors where all allow it. */
function pass(
  traits: DeviceTraits,
  { outer, whole, first, part }: SliceSizes,
  operands: readonly Operand[],
  columns: number,
  body: (stored: Storage, sizes: { whole: number; first: number; part: number }) => string,
): Pass {
  const width = [whole, first, part].every((size) => size % 4 === 0) ? 4 : 1;
  const { open, workgroups } = itemText(outer * columns / width);
  const stored = storage(traits, operands, { x: "V", y: "V" }, width);
  const code = `${stored.directives}${vectorPrelude(width)}
${stored.bindings}
${open}${body(stored, { whole: whole / width, first: first / width, part: part / width })}
}
`;
  return { code, workgroups, operands: [0, 1] };
}
