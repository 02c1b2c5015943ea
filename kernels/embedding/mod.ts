/** Look-up of table rows by id, and the sum of gradients that flows back into the table. */
import type { FloatType } from "../host.ts";
import { elementBytes, type Kernel, type Operand, spread } from "../kernel.ts";
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
 * Sums are in token order and repeat bit for bit. The first pass links each token to the next one of the same id; in
 * the second the first token of each id walks its chain, so that every row of the table is read and written once.
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
    { name: "chain", type: "u32", length: tokens, access: "scratch" },
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
      const linkText = itemText(tokens);
      const linkBound = [operands[0], operands[3]];
      const link = `
${storage(traits, linkBound).bindings}
${linkText.open}
  let id = ids[i];
  var next = i + 1u;
  while (next < ${tokens}u && ids[min(next, ${tokens - 1}u)] != id) { next += 1u; }
  var before = i; // tokens before this one and after the last of its id
  while (before > 0u && ids[max(before, 1u) - 1u] != id) { before -= 1u; }
  let leads = before == 0u && id${shifted(firstRow)} < ${vocabulary}u;
  chain[i] = select(next | ${follower}, next, leads);
}
`;
      const [x, y] = spread(tokens);
      const vectorsOf = { dY: "V", dTable: "V" };
      const { directives, bindings, load, bound } = storage(traits, operands, vectorsOf, width, ["dY"]);
      const walk = `${directives}${vectorPrelude(width)}
${bindings}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let token = group.y * ${x}u + group.x;
  let c = group.z * 64u + local;
  if (token >= ${tokens}u || c >= ${vectors}u) { return; }
  var next = chain[token];
  if ((next & ${follower}) != 0u) { return; }
  var sum = ${load("dY", `token * ${vectors}u + c`)};
  while (next < ${tokens}u) {
    sum += ${load("dY", `next * ${vectors}u + c`)};
    next = chain[next] & ~${follower};
  }
  dTable[(ids[token]${shifted(firstRow)}) * ${vectors}u + c] += sum;
}
`;
      return [
        { code: link, workgroups: linkText.workgroups, operands: [0, 3] },
        { code: walk, workgroups: [x, y, Math.ceil(vectors / 64)], ...bound([0, 1, 2, 3]) },
      ];
    },
  };
}

/** An id before the first row becomes a huge one, which is in no table. */
const shifted = (firstRow: number) => firstRow === 0 ? "" : ` - ${firstRow}u`;

/** Mark in a chain: this token is not the first of its id. */
const follower = "0x80000000u";
