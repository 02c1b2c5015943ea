/** Norms on the host, in double: the oracle of the kernels beside this file. `x` is `[rows, columns]`, row by row. */
import type { HostArray } from "../kernel.ts";

interface Sizes {
  readonly rows: number;
  readonly columns: number;
}

/** x, weight → y, inverse. */
export function rmsNormForward(
  { rows, columns, epsilon, unitOffset }: Sizes & { epsilon: number; unitOffset: boolean },
  [x, weight, y, inverse]: readonly HostArray[],
): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns;
    let squares = 0;
    for (let c = 0; c < columns; c++) squares += x[base + c] ** 2;
    const scale = 1 / Math.sqrt(squares / columns + epsilon);
    inverse[row] = scale;
    for (let c = 0; c < columns; c++) y[base + c] = x[base + c] * scale * (unitOffset ? 1 + weight[c] : weight[c]);
  }
}

/** What is added to what is there, rounded as if it had been stored: a sum has the same bits whoever adds it up. */
const addendOf = (sum: HostArray) => sum instanceof Float32Array ? Math.fround : (value: number) => value;

/** x, weight, inverse, dY → dX. With g = dY·w and r = inverse: dX = r g − x r³ mean(g x). */
export function rmsNormBackward(
  { rows, columns, unitOffset, accumulate }: Sizes & { unitOffset: boolean; accumulate: boolean },
  [x, weight, inverse, dY, dX]: readonly HostArray[],
): void {
  const addend = addendOf(dX);
  for (let row = 0; row < rows; row++) {
    const base = row * columns, scale = inverse[row];
    const g = (c: number) => dY[base + c] * (unitOffset ? 1 + weight[c] : weight[c]);
    let product = 0;
    for (let c = 0; c < columns; c++) product += g(c) * x[base + c];
    const back = scale ** 3 * product / columns;
    for (let c = 0; c < columns; c++) {
      const gradient = scale * g(c) - x[base + c] * back;
      dX[base + c] = accumulate ? dX[base + c] + addend(gradient) : gradient;
    }
  }
}

/** x, inverse, dY → dWeight: the sum over rows of dY·x·inverse. */
export function rmsNormWeightGradient(
  { rows, columns, accumulate }: Sizes & { accumulate: boolean },
  [x, inverse, dY, dWeight]: readonly HostArray[],
): void {
  for (let c = 0; c < columns; c++) {
    let sum = 0;
    for (let row = 0; row < rows; row++) sum += dY[row * columns + c] * x[row * columns + c] * inverse[row];
    dWeight[c] = accumulate ? dWeight[c] + sum : sum;
  }
}

/** x, weight, bias → y, mean, inverse (one over the standard deviation). */
export function layerNormForward(
  { rows, columns, epsilon }: Sizes & { epsilon: number },
  [x, weight, bias, y, mean, inverse]: readonly HostArray[],
): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns;
    let sum = 0;
    for (let c = 0; c < columns; c++) sum += x[base + c];
    const center = sum / columns;
    let squares = 0;
    for (let c = 0; c < columns; c++) squares += (x[base + c] - center) ** 2;
    const scale = 1 / Math.sqrt(squares / columns + epsilon);
    mean[row] = center;
    inverse[row] = scale;
    for (let c = 0; c < columns; c++) y[base + c] = (x[base + c] - center) * scale * weight[c] + bias[c];
  }
}

/** x, weight, mean, inverse, dY → dX. With g = dY·w and n = (x − mean)·inverse: dX = inverse (g − mean(g) − n mean(g n)). */
export function layerNormBackward(
  { rows, columns, accumulate }: Sizes & { accumulate: boolean },
  [x, weight, mean, inverse, dY, dX]: readonly HostArray[],
): void {
  const addend = addendOf(dX);
  for (let row = 0; row < rows; row++) {
    const base = row * columns;
    const g = (c: number) => dY[base + c] * weight[c];
    const normal = (c: number) => (x[base + c] - mean[row]) * inverse[row];
    let sum = 0, product = 0;
    for (let c = 0; c < columns; c++) {
      sum += g(c);
      product += g(c) * normal(c);
    }
    for (let c = 0; c < columns; c++) {
      const gradient = inverse[row] * (g(c) - sum / columns - normal(c) * product / columns);
      dX[base + c] = accumulate ? dX[base + c] + addend(gradient) : gradient;
    }
  }
}

/** x, mean, inverse, dY → dWeight, dBias. */
export function layerNormWeightGradient(
  { rows, columns, accumulate }: Sizes & { accumulate: boolean },
  [x, mean, inverse, dY, dWeight, dBias]: readonly HostArray[],
): void {
  for (let c = 0; c < columns; c++) {
    let weight = 0, bias = 0;
    for (let row = 0; row < rows; row++) {
      const i = row * columns + c;
      weight += dY[i] * (x[i] - mean[row]) * inverse[row];
      bias += dY[i];
    }
    dWeight[c] = accumulate ? dWeight[c] + weight : weight;
    dBias[c] = accumulate ? dBias[c] + bias : bias;
  }
}
