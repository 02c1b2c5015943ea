/** What operators share: binding tensors to a kernel's operands, and rules of shapes and types. */
import type { FloatType } from "../../kernels/host.ts";
import type { ElementType, Kernel } from "../../kernels/kernel.ts";
import { elementCount, type Lowered, type Node, type Tensor, type TensorType } from "./graph.ts";

/** Binds inputs then outputs to a kernel's operands in order, passing over scratch. */
export function bind(kernel: Kernel, tensors: readonly Tensor[]): Lowered {
  let next = 0;
  const operands = kernel.operands.map((operand) => {
    if (operand.access === "scratch") return undefined;
    const tensor = tensors[next++];
    if (!tensor || elementCount(tensor.shape) !== operand.length || tensor.type !== operand.type) {
      throw new TypeError(
        `Cannot bind ${kernel.name}: operand ${operand.name} holds ${operand.length} elements of ${operand.type}, ` +
          `the tensor is ${tensor?.type} [${tensor?.shape}]`,
      );
    }
    return tensor;
  });
  return { kernel, operands };
}

export const bindAll = (kernel: Kernel, node: Node) => bind(kernel, [...node.inputs, ...node.outputs]);
export const rowsAndColumns = (shape: readonly number[]) => {
  const columns = shape[shape.length - 1]!;
  return { rows: elementCount(shape) / columns, columns };
};
/** Another tensor's shape and type. */
export const like = ({ shape, type }: TensorType): TensorType => ({ shape, type });
export const typed = (type: ElementType, ...shape: number[]): TensorType => ({ shape, type });
/** What a float tensor is stored as, as kernels take it. */
export const storedAs = ({ type }: TensorType): FloatType => {
  if (type === "u32" || type === "i32") throw new TypeError(`Cannot compute on ${type} as on floats`);
  return type;
};
export const accumulate = (node: Node): boolean => node.attributes.accumulate === true;
export const requireShape = (what: string, actual: readonly number[], expected: readonly number[]) => {
  if (actual.join() !== expected.join()) {
    throw new TypeError(`Cannot trace ${what}: shape [${actual}] where [${expected}] is needed`);
  }
};
