/** Look-up of rows on the host: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";
import { headWords } from "./groups.ts";

interface Sizes {
  readonly tokens: number;
  readonly vocabulary: number;
  readonly columns: number;
  readonly firstRow?: number;
}

/** ids, table → y. */
export function embeddingForward(
  { tokens, vocabulary, columns, firstRow = 0 }: Sizes,
  [ids, table, y]: readonly HostArray[],
): void {
  for (let token = 0; token < tokens; token++) {
    const id = ids[token] - firstRow;
    for (let c = 0; c < columns; c++) {
      y[token * columns + c] = id >= 0 && id < vocabulary ? table[id * columns + c] : 0;
    }
  }
}

/** groups, dY → dTable, added to. Groups say where to look, not how to sum. */
export function embeddingGradient(
  { tokens, vocabulary, columns, firstRow = 0 }: Sizes,
  [groups, dY, dTable]: readonly HostArray[],
): void {
  const order = groups.subarray(headWords), idOf = order.subarray(tokens), beginOf = idOf.subarray(tokens);
  const count = Math.min(groups[headWords - 1], tokens), sum = new Float64Array(columns);
  for (let group = 0; group < count; group++) {
    const row = idOf[group] - firstRow, end = Math.min(beginOf[group + 1], tokens);
    if (row < 0 || row >= vocabulary) continue;
    sum.fill(0);
    for (let place = beginOf[group]; place < end; place++) {
      for (let c = 0; c < columns; c++) sum[c] += dY[order[place] * columns + c];
    }
    for (let c = 0; c < columns; c++) dTable[row * columns + c] += sum[c];
  }
}
