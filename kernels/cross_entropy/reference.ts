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
  { rows, columns, labelSmoothing, firstColumn = 0, vocabulary = columns }: Sizes & {
    firstColumn?: number;
    vocabulary?: number;
  },
  [logits, labels, logSumExp, weight]: readonly HostArray[],
): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns, label = labels[row];
    const valid = label >= 0 && label < vocabulary;
    for (let c = 0; c < columns; c++) {
      const target = (firstColumn + c === label ? 1 - labelSmoothing : 0) + labelSmoothing / vocabulary;
      logits[base + c] = valid ? weight[0] * (Math.exp(logits[base + c] - logSumExp[row]) - target) : 0;
    }
  }
}

/** logits, labels → most, its place, exponentials, sum and the label's logit of each row. */
export function crossEntropyStatistics(
  { rows, columns, firstColumn, joins = false }: {
    rows: number;
    columns: number;
    firstColumn: number;
    joins?: boolean;
  },
  [logits, labels, statistics]: readonly HostArray[],
): void {
  for (let row = 0; row < rows; row++) {
    const base = row * columns, label = labels[row] - firstColumn;
    let best = 0, sum = 0, exponentials = 0;
    for (let c = 0; c < columns; c++) {
      if (logits[base + c] > logits[base + best]) best = c;
      sum += logits[base + c];
    }
    for (let c = 0; c < columns; c++) exponentials += Math.exp(logits[base + c] - logits[base + best]);
    const wanted = label >= 0 && label < columns ? logits[base + label] : 0;
    const own = [logits[base + best], firstColumn + best, exponentials, sum, wanted];
    if (joins) {
      const before = Array.from(statistics.subarray(row * 5, row * 5 + 5)), most = Math.max(before[0], own[0]);
      own[2] = before[2] * Math.exp(before[0] - most) + own[2] * Math.exp(own[0] - most);
      if (before[0] >= own[0]) own[1] = before[1];
      own[0] = most;
      own[3] += before[3];
      own[4] += before[4];
    }
    own.forEach((value, i) => statistics[row * 5 + i] = value);
  }
}

/** statistics of all parts, labels → loss, nll, logSumExp, correct. */
export function crossEntropyMerge(
  { rows, parts, vocabulary, labelSmoothing }: {
    rows: number;
    parts: number;
    vocabulary: number;
    labelSmoothing: number;
  },
  [statistics, labels, loss, nll, logSumExp, correct]: readonly HostArray[],
): void {
  const of = (part: number, row: number, which: number) => statistics[(part * rows + row) * 5 + which];
  for (let row = 0; row < rows; row++) {
    const label = labels[row], valid = label >= 0 && label < vocabulary;
    let best = 0, exponentials = 0, sum = 0;
    for (let part = 1; part < parts; part++) if (of(part, row, 0) > of(best, row, 0)) best = part;
    const most = of(best, row, 0);
    for (let part = 0; part < parts; part++) {
      exponentials += of(part, row, 2) * Math.exp(of(part, row, 0) - most);
      sum += of(part, row, 3);
    }
    const logarithm = Math.log(exponentials);
    const plain = valid ? logarithm + (most - of(Math.floor(label / (vocabulary / parts)), row, 4)) : 0;
    loss[row] = valid ? (1 - labelSmoothing) * plain + labelSmoothing * (logarithm + (most - sum / vocabulary)) : 0;
    nll[row] = plain;
    logSumExp[row] = most + logarithm;
    correct[row] = valid && of(best, row, 1) === label ? 1 : 0;
  }
}
