/** Look-up of table rows by id, and the sum of gradients that flows back into the table. */
import type { FloatType } from "../host.ts";
import { elementBytes, type Kernel, type Operand } from "../kernel.ts";
import { itemText, requireSizes, vectorPrelude } from "../norm/rows.ts";
import { storage, type Stored } from "../storage.ts";
import { gradientOperands, gradientPasses } from "./gradient.ts";
import { groupsLength } from "./groups.ts";
import * as reference from "./reference.ts";

export { groupedTokens, groupsLength, groupTokens } from "./groups.ts";

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
 * Operands: groups u32, the tokens by id as {@linkcode groupTokens} puts them together, dY `[tokens, columns]` → dTable
 * `f32` `[vocabulary, columns]`, added to.
 *
 * Sums repeat bit for bit: those of one id in token order, and where an id occurs often, on a GPU, sums of every so many of
 * its tokens (`gradient.ts`). The work grows with the tokens, however they are spread over ids.
 *
 * @throws {RangeError} when a size is not a positive whole number
 *
 * @example
 * ```ts
 * import { embeddingGradient, groupTokens } from "./mod.ts";
 * const dTable = new Float32Array([0, 1, 0]);
 * embeddingGradient({ tokens: 2, vocabulary: 3, columns: 1 }).reference([
 *   groupTokens(new Uint32Array([1, 1])), new Float32Array([7, 8]), dTable,
 * ]);
 * console.assert(dTable.join() === "0,16,0");
 * ```
 */
export function embeddingGradient(
  { tokens, vocabulary, columns, firstRow = 0, type = "f32" }: EmbeddingSizes,
): Kernel {
  requireSizes("embedding.gradient", { tokens, vocabulary, columns });
  const sizes = { tokens, vocabulary, columns, firstRow, type };
  return {
    name: "embedding.gradient",
    operands: gradientOperands(sizes),
    // As if every token had an id of its own.
    cost: {
      flops: tokens * columns,
      bytes: 4 * groupsLength(tokens) +
        (elementBytes[type] * tokens + 8 * Math.min(tokens, vocabulary)) * columns,
    },
    reference: (views) => reference.embeddingGradient(sizes, views),
    passes: (traits) => gradientPasses(traits, sizes),
  };
}

/** An id before the first row becomes a huge one, which is in no table. */
const shifted = (firstRow: number) => firstRow === 0 ? "" : ` - ${firstRow}u`;
