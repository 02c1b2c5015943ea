/** Elementwise operators: sums, scaling, casts, dropout. One vec4 a thread, which reaches the memory's speed on real GPUs. */
import type { FloatType } from "../host.ts";
import { type Kernel, leastBytes, type Operand, type Pass } from "../kernel.ts";
import type { Storage, Stored } from "../storage.ts";
import { dropThreshold } from "./counter_random.ts";
import {
  addInPlaceReference,
  addReference,
  castReference,
  dropoutReference,
  multiplyReference,
  scaleReference,
} from "./reference.ts";
import { dropoutPass, elementwisePass } from "./wgsl.ts";

export interface Length extends Stored {
  /** Elements of each operand. */
  readonly length: number;
}

/** Operands a, b (read) → y (write): y = a + b. */
export function add({ length, type = "f32" }: Length): Kernel {
  const operands: Operand[] = [
    { name: "a", type, length, access: "read" },
    { name: "b", type, length, access: "read" },
    { name: "y", type, length, access: "write" },
  ];
  return elementwise(
    "elementwise.add",
    operands,
    ({ load, store }) => store("y", "i", `${load("a", "i")} + ${load("b", "i")}`),
    ([a, b, y]) => addReference(a, b, y),
  );
}

/** Operands a, b (read) → y (write): y = a b. `factorType` is b's, that of a if left out. */
export function multiply(
  { length, type = "f32", factorType = type }: Length & { readonly factorType?: FloatType },
): Kernel {
  const operands: Operand[] = [
    { name: "a", type, length, access: "read" },
    { name: "b", type: factorType, length, access: "read" },
    { name: "y", type, length, access: "write" },
  ];
  return elementwise(
    "elementwise.multiply",
    operands,
    ({ load, store }) => store("y", "i", `${load("a", "i")} * ${load("b", "i")}`),
    ([a, b, y]) => multiplyReference(a, b, y),
  );
}

/** Operands x (update), y (read): x += y. `addendType` is y's, that of x if left out: a half value into an `f32` sum. */
export function addInPlace(
  { length, type = "f32", addendType = type }: Length & { readonly addendType?: FloatType },
): Kernel {
  const operands: Operand[] = [
    { name: "x", type, length, access: "update" },
    { name: "y", type: addendType, length, access: "read" },
  ];
  return elementwise(
    "elementwise.addInPlace",
    operands,
    ({ load, add }) => add("x", "i", load("y", "i")),
    ([x, y]) => addInPlaceReference(x, y),
  );
}

/** Operands x (read) → y (write): y = factor x. */
export function scale({ length, factor, type = "f32" }: Length & { readonly factor: number }): Kernel {
  if (!Number.isFinite(factor)) throw new RangeError(`Cannot scale: factor must be finite, got ${factor}`);
  const operands: Operand[] = [
    { name: "x", type, length, access: "read" },
    { name: "y", type, length, access: "write" },
  ];
  const body = ({ load, store }: Storage) => store("y", "i", `f32(${Math.fround(factor)}) * ${load("x", "i")}`);
  return elementwise("elementwise.scale", operands, body, ([x, y]) => scaleReference(x, y, Math.fround(factor)));
}

/** Operand y (write): every element is `value`. */
export function fill({ length, value, type = "f32" }: Length & { readonly value: number }): Kernel {
  const operands: Operand[] = [{ name: "y", type, length, access: "write" }];
  const vector = length % 4 === 0 ? "vec4<f32>" : "f32";
  return elementwise(
    "elementwise.fill",
    operands,
    ({ store }) => store("y", "i", `${vector}(${Math.fround(value)})`),
    ([y]) => y.fill(value),
  );
}

/**
 * Operands x (read) → y (write): y = x in another type. To a half type it rounds to nearest, ties to even, and past the
 * largest number it gives infinity; from one it is exact.
 *
 * @example
 * ```ts
 * import { cast } from "./mod.ts";
 * const { operands, cost } = cast({ length: 8, from: "f32", to: "bf16" });
 * console.assert(operands[1].type === "bf16" && cost.bytes === 48);
 * ```
 */
export function cast(
  { length, from, to }: { readonly length: number; readonly from: FloatType; readonly to: FloatType },
): Kernel {
  const operands: Operand[] = [
    { name: "x", type: from, length, access: "read" },
    { name: "y", type: to, length, access: "write" },
  ];
  const body = ({ load, store }: Storage) => store("y", "i", load("x", "i"));
  return elementwise("elementwise.cast", operands, body, ([x, y]) => castReference(x, y));
}

export interface DropoutOptions extends Length {
  /** Share of elements set to zero, in [0, 1). The others are divided by 1 - rate. */
  readonly rate: number;
  /** Distinguishes the places of a model that drop, so that their masks are independent. */
  readonly layer: number;
  /** Place of the first element in a tensor that is divided over ranks, so that the mask is that of the whole. @default {0} */
  readonly firstElement?: number;
}

/**
 * Operands x (read), counter u32[2] = [seed, step] (read) → y (write). The mask is a hash of (seed, step, layer,
 * element), so nothing is kept: the gradient is the same kernel on dy.
 */
export function dropout({ length, rate, layer, firstElement = 0, type = "f32" }: DropoutOptions): Kernel {
  const threshold = dropThreshold(rate);
  const operands: Operand[] = [
    { name: "x", type, length, access: "read" },
    { name: "counter", type: "u32", length: 2, access: "read" },
    { name: "y", type, length, access: "write" },
  ];
  return {
    name: "elementwise.dropout",
    operands,
    cost: { flops: length, bytes: leastBytes(operands) },
    reference: ([x, counter, y]) => dropoutReference(x, counter, y, { rate, layer, firstElement }),
    passes(traits) {
      const factor = Math.fround(1 / (1 - rate));
      return [dropoutPass(traits, { length, threshold, factor, layer, firstElement, type })];
    },
  };
}

/** A kernel of one statement that reads and writes element `i` of equally long operands. */
function elementwise(
  name: string,
  operands: Operand[],
  body: (storage: Storage) => string,
  reference: Kernel["reference"],
): Kernel {
  return {
    name,
    operands,
    cost: { flops: operands[0].length, bytes: leastBytes(operands) },
    reference,
    passes: (traits): Pass[] => [elementwisePass(traits, operands, body)],
  };
}
