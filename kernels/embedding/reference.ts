/** Look-up of rows on the host: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";

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

/** ids, dY → dTable, added to. */
export function embeddingGradient(
  { tokens, vocabulary, columns, firstRow = 0 }: Sizes,
  [ids, dY, dTable]: readonly HostArray[],
): void {
  const sums = new Map<number, Float64Array>();
  for (let token = 0; token < tokens; token++) {
    const id = ids[token] - firstRow;
    if (id < 0 || id >= vocabulary) continue;
    let sum = sums.get(id);
    if (!sum) sums.set(id, sum = new Float64Array(columns));
    for (let c = 0; c < columns; c++) sum[c] += dY[token * columns + c];
  }
  for (const [id, sum] of sums) for (let c = 0; c < columns; c++) dTable[id * columns + c] += sum[c];
}
