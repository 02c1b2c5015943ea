/** Cross entropy on the host, in double: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";

interface Sizes {
  readonly rows: number;
  readonly columns: number;
  readonly labelSmoothing: number;
}

/** logits, labels → loss, nll, logSumExp, correct. */
export function crossEntropyForward(
  { rows, columns, labelSmoothing }: Sizes,
  [logits, labels, loss, nll, logSumExp, correct]: readonly HostArray[],
): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns, label = labels[row];
    let best = 0, sum = 0;
    for (let c = 0; c < columns; c++) {
      if (logits[base + c] > logits[base + best]) best = c;
      sum += logits[base + c];
    }
    let exponentials = 0;
    for (let c = 0; c < columns; c++) exponentials += Math.exp(logits[base + c] - logits[base + best]);
    const most = logits[base + best], logarithm = Math.log(exponentials);
    const valid = label >= 0 && label < columns;
    // Differences of logits first: beside a large logit the logarithm would be rounded away.
    const plain = valid ? logarithm + (most - logits[base + label]) : 0;
    logSumExp[row] = most + logarithm;
    nll[row] = plain;
    loss[row] = valid ? (1 - labelSmoothing) * plain + labelSmoothing * (logarithm + (most - sum / columns)) : 0;
    correct[row] = valid && best === label ? 1 : 0;
  }
}

/** logits (become their gradient), labels, logSumExp, weight. */
export function crossEntropyBackward(
  { rows, columns, labelSmoothing }: Sizes,
  [logits, labels, logSumExp, weight]: readonly HostArray[],
): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns, label = labels[row];
    const valid = label >= 0 && label < columns;
    for (let c = 0; c < columns; c++) {
      const target = (c === label ? 1 - labelSmoothing : 0) + labelSmoothing / columns;
      logits[base + c] = valid ? weight[0] * (Math.exp(logits[base + c] - logSumExp[row]) - target) : 0;
    }
  }
}
