/**
 * Query, key and value that one product makes side by side, `[tokens, heads + 2 kvHeads, headDim]`: taken apart, with query
 * and key turned on the way, and back. What rotation alone would move anyway is all that is moved.
 */
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { itemText, requireSizes } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import type { RotateSizes } from "./mod.ts";
import { rotate as rotateReference } from "./reference.ts";

export interface HeadsSizes extends Omit<RotateSizes, "inverse"> {
  readonly kvHeads: number;
}

/**
 * Operands: qkv `[tokens, heads + 2 kvHeads, headDim]`, positions, cosine, sine as of `rotate` → query `[tokens,
 * heads, headDim]` and key `[tokens, kvHeads, headDim]`, turned; value, shaped as key.
 *
 * @throws {RangeError} when a size is not a positive whole number or `headDim` is odd
 */
export function splitHeads(sizes: HeadsSizes): Kernel {
  const { whole, parts, tables } = operandsOf(sizes);
  const written = parts.map((part) => ({ ...part, access: "write" } as const));
  return kernelOf("rope.splitHeads", sizes, [{ ...whole, access: "read" }, ...tables, ...written], false);
}

/**
 * Gradient of {@linkcode splitHeads}. Operands: query, key, value (their gradients), positions, cosine, sine → qkv.
 *
 * @throws {RangeError} when a size is not a positive whole number or `headDim` is odd
 */
export function joinHeads(sizes: HeadsSizes): Kernel {
  const { whole, parts, tables } = operandsOf(sizes);
  const read = parts.map((part) => ({ ...part, access: "read" } as const));
  return kernelOf("rope.joinHeads", sizes, [...read, ...tables, { ...whole, access: "write" }], true);
}

function operandsOf({ tokens, heads, kvHeads, headDim, positionsLength, type = "f32" }: HeadsSizes) {
  const head = tokens * headDim, table = positionsLength * headDim / 2;
  return {
    whole: { name: "qkv", type, length: head * (heads + 2 * kvHeads) },
    parts: [
      { name: "query", type, length: head * heads },
      { name: "key", type, length: head * kvHeads },
      { name: "value", type, length: head * kvHeads },
    ],
    tables: [
      { name: "positions", type: "u32", length: tokens, access: "read" },
      { name: "cosine", type: "f32", length: table, access: "read" },
      { name: "sine", type: "f32", length: table, access: "read" },
    ] as readonly Operand[],
  };
}

function kernelOf(name: string, sizes: HeadsSizes, operands: readonly Operand[], joins: boolean): Kernel {
  const { tokens, heads, kvHeads, headDim, positionsLength, interleaved } = sizes;
  requireSizes(name, { tokens, heads, kvHeads, headDim, positionsLength });
  if (headDim % 2 !== 0) {
    throw new RangeError(`Cannot make ${name}: headDim must be even, current value is ${headDim}`);
  }
  const half = headDim / 2, all = heads + 2 * kvHeads;
  return {
    name,
    operands,
    cost: { flops: 3 * tokens * (heads + kvHeads) * headDim, bytes: leastBytes(operands) },
    reference(views) {
      const view = (name: string) => views[operands.findIndex((operand) => operand.name === name)]!;
      const qkv = view("qkv"), rotated = { tokens, headDim, positionsLength, interleaved, inverse: joins };
      const parts = [["query", 0, heads], ["key", heads, kvHeads], ["value", heads + kvHeads, kvHeads]] as const;
      for (const [part, first, count] of parts) {
        const own = view(part), width = count * headDim;
        const turned = (x: typeof own, y: typeof own) =>
          part === "value"
            ? y.set(x)
            : rotateReference({ ...rotated, heads: count }, [x, view("positions"), view("cosine"), view("sine"), y]);
        const place = (token: number) => (token * all + first) * headDim;
        const beside = own.slice();
        if (joins) {
          turned(own, beside);
          for (let t = 0; t < tokens; t++) qkv.set(beside.subarray(t * width, (t + 1) * width), place(t));
        } else {
          for (let t = 0; t < tokens; t++) beside.set(qkv.subarray(place(t), place(t) + width), t * width);
          turned(beside, own);
        }
      }
    },
    passes(traits) {
      // Pairs an invocation turns, as in `rotate`.
      const pairs = interleaved ? (half % 2 === 0 ? 2 : 1) : (half % 4 === 0 ? 4 : 1);
      const steps = half / pairs, both = interleaved && pairs === 2;
      const { open, workgroups } = itemText(tokens * all * steps);
      const vector = (size: number) => size === 1 ? "f32" : `vec${size}f`;
      const rowType = vector(both ? 4 : pairs), tableType = vector(pairs);
      const elements = {
        qkv: rowType,
        query: rowType,
        key: rowType,
        value: rowType,
        cosine: tableType,
        sine: tableType,
      };
      const imaged = operands.filter(({ access }) => access === "read").map(({ name }) => name)
        .filter((name) => name !== "positions");
      const { directives, bindings, load, store, bound } = storage(traits, operands, elements, 1, imaged);
      /** Places of a pair's halves in an array of heads, from the head's number. */
      const places = (head: string): readonly [string, string] | readonly [string] =>
        both
          ? [`${head} * ${steps}u + step`]
          : interleaved
          ? [`(${head} * ${half}u + step) * 2u`, `(${head} * ${half}u + step) * 2u + 1u`]
          : [`${head} * ${2 * steps}u + step`, `${head} * ${2 * steps}u + step + ${steps}u`];
      const [whole, whole2] = places("head");
      const move = (part: string, number: string, turns: boolean) => {
        const [own, own2] = places("own");
        const [from, from2, to, to2] = joins ? [own, own2, whole, whole2] : [whole, whole2, own, own2];
        const source = joins ? part : "qkv", target = joins ? "qkv" : part;
        const values = both
          ? [turns ? "a * cos.xxyy + vec4f(-a.y, a.x, -a.w, a.z) * sin.xxyy" : "a"]
          : turns
          ? ["a * cos - b * sin", "a * sin + b * cos"]
          : ["a", "b"];
        return `
    let own = token * ${part === "query" ? heads : kvHeads}u + ${number};
    let at = ${from};
    let a = ${load(source, "at")};${
          from2 === undefined ? "" : `\n    let at2 = ${from2};\n    let b = ${load(source, "at2")};`
        }
    let into = ${to};
    ${store(target, "into", values[0]!)}${
          to2 === undefined ? "" : `\n    let into2 = ${to2};\n    ${store(target, "into2", values[1]!)}`
        }`;
      };
      const code = `${directives}
${bindings}
${open}
  let head = i / ${steps}u; // counted through all tokens
  let step = i % ${steps}u;
  let token = head / ${all}u;
  let h = head % ${all}u;
  if (h >= ${heads + kvHeads}u) {${move("value", `h - ${heads + kvHeads}u`, false)}
    return;
  }
  let entry = min(positions[token], ${positionsLength - 1}u) * ${steps}u + step;
  let cos = ${load("cosine", "entry")};
  let sin = ${joins ? "-" : ""}${load("sine", "entry")};
  if (h >= ${heads}u) {${move("key", `h - ${heads}u`, true)}
  } else {${move("query", "h", true)}
  }
}
`;
      return [{ code, workgroups, ...bound(operands.map((_, index) => index)) }];
    },
  };
}
