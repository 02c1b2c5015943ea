/** Rows of tokens moved to their experts and back, on the host: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";
import type { PermuteSizes } from "./mod.ts";

/** x, row, [weight] → y */
export function toRows(
  { tokens, columns, choices }: PermuteSizes,
  weighted: boolean,
  views: readonly HostArray[],
): void {
  const x = views[0], row = views[1], weight = weighted ? views[2] : undefined, y = views[views.length - 1];
  for (let r = 0; r < row.length; r++) {
    const at = row[r], token = Math.floor(at / choices);
    for (let c = 0; c < columns; c++) {
      y[r * columns + c] = at >= tokens * choices ? 0 : x[token * columns + c] * (weight ? weight[at] : 1);
    }
  }
}

/** x, slot, [weight] → y */
export function fromRows(
  { tokens, rows, columns, choices }: PermuteSizes,
  weighted: boolean,
  views: readonly HostArray[],
) {
  const x = views[0], slot = views[1], weight = weighted ? views[2] : undefined, y = views[views.length - 1];
  for (let t = 0; t < tokens; t++) {
    for (let c = 0; c < columns; c++) {
      let sum = 0;
      for (let at = t * choices; at < (t + 1) * choices; at++) {
        if (slot[at] < rows) sum += x[slot[at] * columns + c] * (weight ? weight[at] : 1);
      }
      y[t * columns + c] = sum;
    }
  }
}

/** x, slot, dY → dWeight */
export function weightGradient(
  { tokens, rows, columns, choices }: PermuteSizes,
  [x, slot, dY, dWeight]: readonly HostArray[],
) {
  for (let at = 0; at < tokens * choices; at++) {
    const token = Math.floor(at / choices);
    let sum = 0;
    if (slot[at] < rows) {
      for (let c = 0; c < columns; c++) sum += x[slot[at] * columns + c] * dY[token * columns + c];
    }
    dWeight[at] = sum;
  }
}
