/** The sizes and options of a matrix product, shared by every form of the kernel. */
import type { FloatType } from "../host.ts";
import type { Operand } from "../kernel.ts";

/** Operands of a product that may be stored as half floats, each for itself. */
export type MatmulOperand = "a" | "b" | "bias" | "residual" | "c";

export interface MatmulOptions {
  /** Rows of C. */
  readonly m: number;
  /** Columns of C. */
  readonly n: number;
  /** Terms of each sum. */
  readonly k: number;
  /** A is stored `[k, m]` instead of `[m, k]`. @default {false} */
  readonly transposeA?: boolean;
  /** B is stored `[n, k]`, as a linear layer's weight is, instead of `[k, n]`. @default {false} */
  readonly transposeB?: boolean;
  /** Independent products, leading dimension of a, b, residual and c. @default {1} */
  readonly batch?: number;
  /** C += instead of C =. @default {false} */
  readonly accumulate?: boolean;
  /** Add a vector `[n]` to each row. @default {false} */
  readonly bias?: boolean;
  /** Add a tensor shaped as C. @default {false} */
  readonly residual?: boolean;
  /** What operands are stored as. Products are summed in `f32`, whatever they are. @default {all "f32"} */
  readonly types?: Readonly<Partial<Record<MatmulOperand, FloatType>>>;
  /**
   * Where a device has matrix units, compute a product of `f32` operands on them, each element as the sum of two `f16`:
   * nearly as exact, and faster than vector units are. @default {false}
   */
  readonly split?: boolean;
  /**
   * Where a device has no matrix units for them, multiply `f16` operands as `f16`, two at once, and add up 32 terms so
   * before they join the `f32` sum. At any depth that is off by 9e-4 of C, by root mean square: three times what storing C
   * in `f16` is. 32 terms must not pass 65,504.
   * @default {false}
   */
  readonly packed?: boolean;
}

export type MatmulShape = Required<MatmulOptions>;

/** A product with all that its options leave out. */
export const shapeOf = (options: MatmulOptions): MatmulShape => ({
  transposeA: false,
  transposeB: false,
  batch: 1,
  accumulate: false,
  bias: false,
  residual: false,
  types: {},
  split: false,
  packed: false,
  ...options,
});

/** Operands in order, without scratch: a, b, [bias], [residual], c. */
export function matmulOperands(
  { m, n, k, batch, accumulate, bias, residual, types }: MatmulShape,
): Operand[] {
  const operand = (name: MatmulOperand, length: number, access: Operand["access"]): Operand => {
    return { name, type: types[name] ?? "f32", length, access };
  };
  return [
    operand("a", batch * m * k, "read"),
    operand("b", batch * k * n, "read"),
    ...(bias ? [operand("bias", n, "read")] : []),
    ...(residual ? [operand("residual", batch * m * n, "read")] : []),
    operand("c", batch * m * n, accumulate ? "update" : "write"),
  ];
}

/** Places of named operands in an operand list. */
export function placesOf(operands: readonly Operand[], names: readonly string[]): number[] {
  return names.map((name) => operands.findIndex((operand) => operand.name === name));
}

/** Operands that the last step of a product touches besides the sums: [bias], [residual], c. */
export function epilogueNames({ bias, residual }: MatmulShape): string[] {
  return [...(bias ? ["bias"] : []), ...(residual ? ["residual"] : []), "c"];
}
