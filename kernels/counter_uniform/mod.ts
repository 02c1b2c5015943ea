/** Random numbers as a function of a counter: the same on every device, on every replay of a layer. */
import { pcg4dWgsl } from "../elementwise/counter_random.ts";
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { bindings, float, itemText, requireSizes } from "../norm/rows.ts";
import * as reference from "./reference.ts";

export interface CounterUniformOptions {
  readonly length: number;
  /** Distinguishes the places of a model that draw, so that they are independent. */
  readonly stream: number;
  /** Ends of the interval, never drawn themselves. @default {0} and {1} */
  readonly low?: number;
  readonly high?: number;
}

/**
 * Numbers spread evenly over an interval, keyed by (seed, step, stream, element) as dropout's masks are.
 *
 * Operands: counter u32 `[2]` = seed, step → y `[length]`.
 *
 * @throws {RangeError} when the length is not a positive whole number
 *
 * @example
 * ```ts
 * import { counterUniform } from "./mod.ts";
 * const y = new Float32Array(3);
 * counterUniform({ length: 3, stream: 0 }).reference([new Uint32Array([1, 2]), y]);
 * console.assert(y.every((value) => value > 0 && value < 1));
 * ```
 */
export function counterUniform({ length, stream, low = 0, high = 1 }: CounterUniformOptions): Kernel {
  requireSizes("counterUniform", { length });
  const operands: readonly Operand[] = [
    { name: "counter", type: "u32", length: 2, access: "read" },
    { name: "y", type: "f32", length, access: "write" },
  ];
  return {
    name: "counterUniform",
    operands,
    cost: { flops: 0, bytes: leastBytes(operands) },
    reference: (views) => reference.counterUniform({ stream, low, high }, views),
    passes() {
      const { open, workgroups } = itemText(length);
      const code = `
${bindings(operands)}
${pcg4dWgsl}
${open}
  let words = pcg4d(vec4u(i / 4u, ${stream}u, counter[1], counter[0]));
  let unit = (f32(words[i % 4u] >> 9u) + 0.5f) * ${float(2 ** -23)};
  y[i] = ${float(Math.fround(low))} + ${float(Math.fround(high - low))} * unit;
}
`;
      return [{ code, workgroups, operands: [0, 1] }];
    },
  };
}
