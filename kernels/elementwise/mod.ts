/** Elementwise operators in `f32`: sums, scaling. One vec4 a thread, which reaches the memory's speed on real GPUs. */
import { type Kernel, leastBytes, type Operand, type Pass } from "../kernel.ts";
import { addInPlaceReference, addReference, scaleReference } from "./reference.ts";
import { elementwisePass } from "./wgsl.ts";

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

/** A kernel of one statement that reads and writes element `i` of equally long `f32` operands. */
function elementwise(name: string, operands: Operand[], body: string, reference: Kernel["reference"]): Kernel {
  return {
    name,
    operands,
    cost: { flops: operands[0].length, bytes: leastBytes(operands) },
    reference,
    passes: (): Pass[] => [elementwisePass(operands, body)],
  };
}
