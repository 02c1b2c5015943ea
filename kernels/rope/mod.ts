/** Rotary position embedding (Su et al. 2021, "RoFormer"). */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { itemText, requireSizes } from "../norm/rows.ts";
import { storage, type Stored } from "../storage.ts";
import * as reference from "./reference.ts";

export { dynamicNtkBase, rotaryTables } from "./tables.ts";

export interface RotateSizes extends Stored {
  readonly tokens: number;
  readonly heads: number;
  /** Even. */
  readonly headDim: number;
  /** Rows of the tables. */
  readonly positionsLength: number;
  /** Pairs are (x₂ᵢ, x₂ᵢ₊₁) when true, (xᵢ, xᵢ₊d/₂) when false. */
  readonly interleaved: boolean;
  /** Turn back: by the negative angle, which is also the gradient. @default {false} */
  readonly inverse?: boolean;
}

/**
 * Turns each pair (a, b) of a head by its token's angle: (a·cos − b·sin, a·sin + b·cos).
 *
 * Operands: x `[tokens, heads, headDim]`, positions u32 `[tokens]`, cosine and sine `[positionsLength, headDim / 2]`
 * (see {@linkcode rotaryTables}) → y, shaped as x. A position past the tables takes their last row: whoever makes
 * positions checks them.
 *
 * @throws {RangeError} when a size is not a positive whole number or `headDim` is odd
 *
 * @example
 * ```ts
 * import { rotate } from "./mod.ts";
 * const quarterTurn = { tokens: 1, heads: 1, headDim: 2, positionsLength: 1, interleaved: false };
 * const y = new Float32Array(2);
 * rotate(quarterTurn).reference([
 *   new Float32Array([1, 0]), new Uint32Array([0]), new Float32Array([0]), new Float32Array([1]), y,
 * ]);
 * console.assert(y[0] === 0 && y[1] === 1);
 * ```
 */
export function rotate(
  { tokens, heads, headDim, positionsLength, interleaved, inverse = false, type = "f32" }: RotateSizes,
): Kernel {
  requireSizes("rope.rotate", { tokens, heads, headDim, positionsLength });
  if (headDim % 2 !== 0) {
    throw new RangeError(`Cannot make rope.rotate: headDim must be even, current value is ${headDim}`);
  }
  const half = headDim / 2;
  const operands: readonly Operand[] = [
    { name: "x", type, length: tokens * heads * headDim, access: "read" },
    { name: "positions", type: "u32", length: tokens, access: "read" },
    { name: "cosine", type: "f32", length: positionsLength * half, access: "read" },
    { name: "sine", type: "f32", length: positionsLength * half, access: "read" },
    { name: "y", type, length: tokens * heads * headDim, access: "write" },
  ];
  return {
    name: inverse ? "rope.rotateBack" : "rope.rotate",
    operands,
    cost: { flops: 3 * tokens * heads * headDim, bytes: leastBytes(operands) },
    reference: (views) => reference.rotate({ tokens, heads, headDim, positionsLength, interleaved, inverse }, views),
    passes(traits) {
      // Pairs an invocation turns: four (two vec4) of split pairs, two (one vec4) of interleaved ones.
      const pairs = interleaved ? (half % 2 === 0 ? 2 : 1) : (half % 4 === 0 ? 4 : 1);
      const steps = half / pairs;
      const { open, workgroups } = itemText(tokens * heads * steps);
      const sign = inverse ? "-" : "";
      const vector = (size: number) => size === 1 ? "f32" : `vec${size}f`;
      const rowType = vector(interleaved && pairs === 2 ? 4 : pairs), tableType = vector(pairs);
      const elements = { x: rowType, y: rowType, cosine: tableType, sine: tableType };
      const imaged = ["x", "cosine", "sine"];
      const { directives, bindings, load, store, bound } = storage(traits, operands, elements, 1, imaged);
      const body = interleaved
        ? (pairs === 2
          ? `
  let at = head * ${steps}u + step;
  let v = ${load("x", "at")};
  ${store("y", "at", "v * cos.xxyy + vec4f(-v.y, v.x, -v.w, v.z) * sin.xxyy")}`
          : `
  let at = (head * ${half}u + step) * 2u;
  let a = ${load("x", "at")};
  let b = ${load("x", "at + 1u")};
  ${store("y", "at", "a * cos - b * sin")}
  ${store("y", "at + 1u", "a * sin + b * cos")}`)
        : `
  let at = head * ${2 * steps}u + step;
  let a = ${load("x", "at")};
  let b = ${load("x", `at + ${steps}u`)};
  ${store("y", "at", "a * cos - b * sin")}
  ${store("y", `at + ${steps}u`, "a * sin + b * cos")}`;
      const code = `${directives}
${bindings}
${open}
  let head = i / ${steps}u; // counted through all tokens
  let step = i % ${steps}u;
  let entry = min(positions[head / ${heads}u], ${positionsLength - 1}u) * ${steps}u + step;
  let cos = ${load("cosine", "entry")};
  let sin = ${sign}${load("sine", "entry")};
  ${body}
}
`;
      return [{ code, workgroups, ...bound([0, 1, 2, 3, 4]) }];
    },
  };
}
