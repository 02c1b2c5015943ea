/** The sizes and options of a matrix product, shared by every form of the kernel. */
import type { Operand } from "../kernel.ts";

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
}

export type MatmulShape = Required<MatmulOptions>;

/** Operands in order, without scratch: a, b, [bias], [residual], c. */
export function matmulOperands(
  { m, n, k, batch, accumulate, bias, residual }: MatmulShape,
): Operand[] {
  return [
    { name: "a", type: "f32", length: batch * m * k, access: "read" },
    { name: "b", type: "f32", length: batch * k * n, access: "read" },
    ...(bias ? [{ name: "bias", type: "f32", length: n, access: "read" } as const] : []),
    ...(residual ? [{ name: "residual", type: "f32", length: batch * m * n, access: "read" } as const] : []),
    { name: "c", type: "f32", length: batch * m * n, access: accumulate ? "update" : "write" },
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
