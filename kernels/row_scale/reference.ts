/** Rows times a number each, on the host: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";
import type { RowScaleSizes } from "./mod.ts";

const factorOf = (sigmoid: boolean, z: number) => sigmoid ? 1 / (1 + Math.exp(-z)) : z;

/** x, factor → y */
export function rowScaleForward(
  { rows, columns, ways, way, sigmoid }: RowScaleSizes,
  [x, factor, y]: readonly HostArray[],
): void {
  for (let r = 0; r < rows; r++) {
    const f = factorOf(sigmoid, factor[r * ways + way]);
    for (let c = 0; c < columns; c++) y[r * columns + c] = f * x[r * columns + c];
  }
}

/** x, factor, dY → dX, dFactor */
export function rowScaleBackward(
  { rows, columns, ways, way, sigmoid }: RowScaleSizes,
  [x, factor, dY, dX, dFactor]: readonly HostArray[],
): void {
  dFactor.fill(0);
  for (let r = 0; r < rows; r++) {
    const f = factorOf(sigmoid, factor[r * ways + way]);
    let dot = 0;
    for (let c = r * columns; c < (r + 1) * columns; c++) {
      dX[c] = f * dY[c];
      dot += x[c] * dY[c];
    }
    dFactor[r * ways + way] = sigmoid ? dot * f * (1 - f) : dot;
  }
}
