/** Look-up of table rows by id, and the sum of gradients that flows back into the table. */
import type { FloatType } from "../host.ts";
import { type DeviceTraits, elementBytes, type Kernel, type Operand, type Pass, spread } from "../kernel.ts";
import { itemText, requireSizes, vectorPrelude } from "../norm/rows.ts";
import { storage, type Stored } from "../storage.ts";
import * as reference from "./reference.ts";

export interface EmbeddingSizes extends Stored {
  readonly tokens: number;
  /** Rows of the table. */
  readonly vocabulary: number;
  readonly columns: number;
  /** Id of the table's first row, where rows are divided over ranks. @default {0} */
  readonly firstRow?: number;
}

/**
 * `y[t] = table[ids[t]]`; a row of zeros where the id is not in the table.
 *
 * Operands: ids u32 `[tokens]`, table `[vocabulary, columns]` → y `[tokens, columns]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { embeddingForward } from "./mod.ts";
 * const y = new Float32Array(2);
 * embeddingForward({ tokens: 2, vocabulary: 3, columns: 1 }).reference([
 *   new Uint32Array([2, 0]), new Float32Array([7, 8, 9]), y,
 * ]);
 * console.assert(y[0] === 9 && y[1] === 7);
 * ```
 */
export function embeddingForward(
  { tokens, vocabulary, columns, firstRow = 0, type = "f32", tableType = type }: EmbeddingSizes & {
    /** @default `type` */
    readonly tableType?: FloatType;
  },
): Kernel {
  requireSizes("embedding.forward", { tokens, vocabulary, columns });
  const operands: readonly Operand[] = [
    { name: "ids", type: "u32", length: tokens, access: "read" },
    { name: "table", type: tableType, length: vocabulary * columns, access: "read" },
    { name: "y", type, length: tokens * columns, access: "write" },
  ];
  return {
    name: "embedding.forward",
    operands,
    // Of the table only the rows that are looked up.
    cost: { flops: 0, bytes: 4 * tokens + (elementBytes[tableType] + elementBytes[type]) * tokens * columns },
    reference: (views) => reference.embeddingForward({ tokens, vocabulary, columns, firstRow }, views),
    passes(traits) {
      const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
      const { open, workgroups } = itemText(tokens * vectors);
      const vectorsOf = { table: "V", y: "V" };
      const { directives, bindings, load, store, bound } = storage(traits, operands, vectorsOf, width, ["table"]);
      const code = `${directives}${vectorPrelude(width)}
${bindings}
${open}
  let id = ids[i / ${vectors}u]${shifted(firstRow)};
  var found = V();
  if (id < ${vocabulary}u) { found = ${load("table", `id * ${vectors}u + i % ${vectors}u`)}; }
  ${store("y", "i", "found")}
}
`;
      return [{ code, workgroups, ...bound([0, 1, 2]) }];
    },
  };
}

/**
 * Gradient of {@linkcode embeddingForward} with respect to the table: `dTable[ids[t]] += dY[t]` for every token. Only
 * rows that were looked up are touched; ids that are not in the table are passed over.
 *
 * Operands: ids u32 `[tokens]`, dY `[tokens, columns]` → dTable `f32` `[vocabulary, columns]`, added to; then
 * scratch.
 *
 * Sums are in token order and repeat bit for bit. The first pass links each token to the next one of the same id. In the
 * last the first token of each id walks its chain, so that every row of the table is read and written once; on a GPU it
 * goes along several chains at once, each of which skips the others' tokens, as a step along one waits for the one before.
 *
 * @throws {RangeError} when a size is not a positive whole number
 */
export function embeddingGradient(
  { tokens, vocabulary, columns, firstRow = 0, type = "f32" }: EmbeddingSizes,
): Kernel {
  requireSizes("embedding.gradient", { tokens, vocabulary, columns });
  const operands: readonly Operand[] = [
    { name: "ids", type: "u32", length: tokens, access: "read" },
    { name: "dY", type, length: tokens * columns, access: "read" },
    { name: "dTable", type: "f32", length: vocabulary * columns, access: "update" },
    { name: "chain", type: "u32", length: 2 * tokens, access: "scratch" },
  ];
  return {
    name: "embedding.gradient",
    operands,
    cost: {
      flops: tokens * columns,
      bytes: 4 * tokens + (elementBytes[type] * tokens + 8 * Math.min(tokens, vocabulary)) * columns,
    },
    reference: (views) => reference.embeddingGradient({ tokens, vocabulary, columns, firstRow }, views),
    passes(traits) {
      const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
      const chains = traits.software ? 1 : 8;
      const [x, y] = spread(tokens);
      const vectorsOf = { dY: "V", dTable: "V" };
      const { directives, bindings, load, bound } = storage(traits, operands, vectorsOf, width, ["dY"]);
      const upTo = Array.from({ length: chains }, (_, k) => k);
      const walk = `${directives}${vectorPrelude(width)}
${bindings}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let token = group.y * ${x}u + group.x;
  let c = group.z * 64u + local;
  if (token >= ${tokens}u || c >= ${vectors}u) { return; }
  let link = chain[token];
  if ((link & ${follower}) != 0u) { return; }
  var sum = ${load("dY", `token * ${vectors}u + c`)};
  var next0 = link;
  ${
        upTo.slice(1).map((k) =>
          `var next${k} = ${tokens}u; if (next${k - 1} < ${tokens}u) { next${k} = chain[next${k - 1}] & ~${follower}; }`
        ).join("\n  ")
      }
  while (next${chains - 1} < ${tokens}u) {
    ${upTo.map((k) => `let term${k} = ${load("dY", `next${k} * ${vectors}u + c`)};`).join("\n    ")}
    ${
        upTo.map((k) =>
          chains === 1 ? `next${k} = chain[next${k}] & ~${follower};` : `next${k} = chain[${tokens}u + next${k}];`
        ).join("\n    ")
      }
    ${upTo.map((k) => `sum += term${k};`).join(" ")}
  }
  ${
        upTo.slice(0, -1).map((k) =>
          `if (next${k} < ${tokens}u) { sum += ${load("dY", `next${k} * ${vectors}u + c`)}; }`
        ).join("\n  ")
      }
  dTable[(ids[token]${shifted(firstRow)}) * ${vectors}u + c] += sum;
}
`;
      const walkPass = { code: walk, workgroups: [x, y, Math.ceil(vectors / 64)], ...bound([0, 1, 2, 3]) } as const;
      const linked = [operands[0], operands[3]], sizes = { tokens, vocabulary, firstRow };
      if (traits.software) return [linkAlone(traits, linked, sizes), walkPass];
      return [linkTogether(traits, linked, sizes), skip(operands, tokens, chains), walkPass];
    },
  };
}

type LinkSizes = Pick<EmbeddingSizes, "tokens" | "vocabulary"> & { readonly firstRow: number };

/** An invocation looks for the tokens beside its own, and stops where it finds them. */
function linkAlone(
  traits: DeviceTraits,
  operands: readonly Operand[],
  { tokens, vocabulary, firstRow }: LinkSizes,
): Pass {
  const { open, workgroups } = itemText(tokens);
  const code = `
${storage(traits, operands).bindings}
${open}
  let id = ids[i];
  var next = i + 1u;
  while (next < ${tokens}u && ids[min(next, ${tokens - 1}u)] != id) { next += 1u; }
  var before = i; // tokens before this one and after the last of its id
  while (before > 0u && ids[max(before, 1u) - 1u] != id) { before -= 1u; }
  let leads = before == 0u && id${shifted(firstRow)} < ${vocabulary}u;
  chain[i] = select(next | ${follower}, next, leads);
}
`;
  return { code, workgroups, operands: [0, 3] };
}

/** Sixteen invocations a token look through all ids, many at a time. */
function linkTogether(
  traits: DeviceTraits,
  operands: readonly Operand[],
  { tokens, vocabulary, firstRow }: LinkSizes,
): Pass {
  const lanes = 16, each = 256 / lanes, ahead = 4, workgroups = spread(Math.ceil(tokens / each));
  const width = tokens % 4 === 0 ? 4 : 1, vectors = tokens / width;
  const type = width === 4 ? "vec4u" : "u32", places = width === 4 ? " + vec4u(0u, 1u, 2u, 3u)" : "";
  const least = (v: string) => width === 4 ? `min(min(${v}.x, ${v}.y), min(${v}.z, ${v}.w))` : v;
  const upTo = Array.from({ length: ahead }, (_, k) => k);
  const code = `
alias I = ${type};
${storage(traits, operands, { ids: type }).bindings}
var<workgroup> nexts: array<u32, 256>;
var<workgroup> firsts: array<u32, 256>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let own = (group.y * ${workgroups[0]}u + group.x) * ${each}u + local / ${lanes}u;
  let token = min(own, ${tokens - 1}u);
  let id = ids[token / ${width}u]${width === 4 ? "[token % 4u]" : ""};
  var later = I(${tokens}u); // the next token of this id
  var sooner = I(${tokens}u); // the first one
  for (var at = local % ${lanes}u; at < ${vectors}u; at += ${lanes * ahead}u) {
    ${
    upTo.map((k) => `let at${k} = min(at + ${k * lanes}u, ${vectors - 1}u); let ids${k} = ids[at${k}];`).join("\n    ")
  }
    ${
    upTo.map((k) =>
      `{ let places = I(at${k} * ${width}u)${places}; let found = select(I(${tokens}u), places, ids${k} == I(id));
      sooner = min(sooner, found); later = min(later, select(I(${tokens}u), found, found > I(token))); }`
    ).join("\n    ")
  }
  }
  nexts[local] = ${least("later")};
  firsts[local] = ${least("sooner")};
  workgroupBarrier();
  if (local % ${lanes}u != 0u || own >= ${tokens}u) { return; }
  var next = nexts[local];
  var first = firsts[local];
  ${
    Array.from(
      { length: lanes - 1 },
      (_, k) => `next = min(next, nexts[local + ${k + 1}u]); first = min(first, firsts[local + ${k + 1}u]);`,
    ).join("\n  ")
  }
  let leads = first == token && id${shifted(firstRow)} < ${vocabulary}u;
  chain[token] = select(next | ${follower}, next, leads);
}
`;
  return { code, workgroups, operands: [0, 3] };
}

/** Behind the chain: for each token the one that is so many steps further. */
function skip(operands: readonly Operand[], tokens: number, steps: number): Pass {
  const { open, workgroups } = itemText(tokens);
  const code = `
@group(0) @binding(0) var<storage, read_write> chain: array<u32>;
${open}
  var at = i;
  ${Array.from({ length: steps }, () => `if (at < ${tokens}u) { at = chain[at] & ~${follower}; }`).join("\n  ")}
  chain[${tokens}u + i] = at;
}
`;
  return { code, workgroups, operands: [operands.length - 1] };
}

/** An id before the first row becomes a huge one, which is in no table. */
const shifted = (firstRow: number) => firstRow === 0 ? "" : ` - ${firstRow}u`;

/** Mark in a chain: this token is not the first of its id. */
const follower = "0x80000000u";
