/** Elementwise operators in `f32`: sums, scaling, dropout. One vec4 a thread, which reaches the memory's speed on real GPUs. */
import { type Kernel, leastBytes, type Operand, type Pass } from "../kernel.ts";
import { dropThreshold } from "./counter_random.ts";
import { addInPlaceReference, addReference, dropoutReference, scaleReference } from "./reference.ts";
import { dropoutPass, elementwisePass } from "./wgsl.ts";

export interface Length {
  /** Elements of each operand. */
  readonly length: number;
}

/** Operands a, b (read) → y (write): y = a + b. */
export function add({ length }: Length): Kernel {
  const operands: Operand[] = [
    { name: "a", type: "f32", length, access: "read" },
    { name: "b", type: "f32", length, access: "read" },
    { name: "y", type: "f32", length, access: "write" },
  ];
  return elementwise("elementwise.add", operands, "y[i] = a[i] + b[i];", ([a, b, y]) => addReference(a, b, y));
}

/** Operands x (update), y (read): x += y. */
export function addInPlace({ length }: Length): Kernel {
  const operands: Operand[] = [
    { name: "x", type: "f32", length, access: "update" },
    { name: "y", type: "f32", length, access: "read" },
  ];
  return elementwise("elementwise.addInPlace", operands, "x[i] += y[i];", ([x, y]) => addInPlaceReference(x, y));
}

/** Operands x (read) → y (write): y = factor x. */
export function scale({ length, factor }: Length & { readonly factor: number }): Kernel {
  if (!Number.isFinite(factor)) throw new RangeError(`Cannot scale: factor must be finite, got ${factor}`);
  const operands: Operand[] = [
    { name: "x", type: "f32", length, access: "read" },
    { name: "y", type: "f32", length, access: "write" },
  ];
  const body = `y[i] = f32(${Math.fround(factor)}) * x[i];`;
  return elementwise("elementwise.scale", operands, body, ([x, y]) => scaleReference(x, y, Math.fround(factor)));
}

export interface DropoutOptions extends Length {
  /** Share of elements set to zero, in [0, 1). The others are divided by 1 - rate. */
  readonly rate: number;
  /** Distinguishes the places of a model that drop, so that their masks are independent. */
  readonly layer: number;
}

/**
 * Operands x (read), counter u32[2] = [seed, step] (read) → y (write). The mask is a hash of (seed, step, layer,
 * element), so nothing is kept: the gradient is the same kernel on dy.
 */
export function dropout({ length, rate, layer }: DropoutOptions): Kernel {
  const threshold = dropThreshold(rate);
  const operands: Operand[] = [
    { name: "x", type: "f32", length, access: "read" },
    { name: "counter", type: "u32", length: 2, access: "read" },
    { name: "y", type: "f32", length, access: "write" },
  ];
  return {
    name: "elementwise.dropout",
    operands,
    cost: { flops: length, bytes: leastBytes(operands) },
    reference: ([x, counter, y]) => dropoutReference(x, counter, y, rate, layer),
    passes: (traits) => [dropoutPass(traits, length, threshold, Math.fround(1 / (1 - rate)), layer)],
  };
}

/** A kernel of one statement that reads and writes element `i` of equally long `f32` operands. */
function elementwise(name: string, operands: Operand[], body: string, reference: Kernel["reference"]): Kernel {
  return {
    name,
    operands,
    cost: { flops: operands[0].length, bytes: leastBytes(operands) },
    reference,
    passes: (traits): Pass[] => [elementwisePass(traits, operands, body)],
  };
}
