/** The router of a mixture of experts on the host, in double: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";
import type { Normalization, RouterSizes } from "./mod.ts";

/** Stands for "no expert" among choices and "no row" among slots. */
export const none = 0xffff_ffff;
/** Least sum that weights are divided by: the distance from 1 to the next `f32`. */
export const leastSum = 2 ** -23;

/** logits → probabilities */
export function softmaxForward(columns: number, [x, y]: readonly HostArray[]): void {
  for (let first = 0; first < x.length; first += columns) {
    let largest = -Infinity, sum = 0;
    for (let c = 0; c < columns; c++) largest = Math.max(largest, x[first + c]);
    const exponentials = Array.from({ length: columns }, (_, c) => Math.exp(x[first + c] - largest));
    for (const value of exponentials) sum += value;
    exponentials.forEach((value, c) => y[first + c] = value / sum);
  }
}

/** probabilities, their gradient → gradient of logits */
export function softmaxBackward(columns: number, [y, dY, dX]: readonly HostArray[]): void {
  for (let first = 0; first < y.length; first += columns) {
    let dot = 0;
    for (let c = first; c < first + columns; c++) dot += y[c] * dY[c];
    for (let c = first; c < first + columns; c++) dX[c] = y[c] * (dY[c] - dot);
  }
}

/** logits, [uniform] → choice */
export function choose(
  { tokens, experts, choices }: RouterSizes,
  noiseFrom: number | undefined,
  views: readonly HostArray[],
): void {
  const logits = views[0], uniform = noiseFrom === undefined ? undefined : views[1], choice = views[views.length - 1];
  for (let t = 0; t < tokens; t++) {
    const taken = new Set<number>();
    for (let j = 0; j < choices; j++) {
      let best = -1, highest = -Infinity;
      for (let e = 0; e < experts; e++) {
        const at = t * experts + e;
        const score = logits[at] + (uniform && j >= noiseFrom! ? -Math.log(-Math.log(uniform[at])) : 0);
        if (taken.has(e) || (best >= 0 && score <= highest)) continue;
        best = e;
        highest = score;
      }
      taken.add(best);
      choice[t * choices + j] = best;
    }
  }
}

/** Which choices of a token count in the sum that its weights are divided by. */
const counts = (normalize: Normalization, slot: number) =>
  normalize === "all" || (normalize === "kept" && slot !== none);

/** probabilities, choice, slot → weight */
export function weighForward(
  { tokens, experts, choices }: RouterSizes,
  normalize: Normalization,
  [probability, choice, slot, weight]: readonly HostArray[],
): void {
  for (let t = 0; t < tokens; t++) {
    const of = (j: number) => {
      const e = choice[t * choices + j];
      return e >= experts ? 0 : probability[t * experts + e];
    };
    let sum = 0;
    for (let j = 0; j < choices; j++) if (counts(normalize, slot[t * choices + j])) sum += of(j);
    const divisor = normalize === "none" ? 1 : Math.max(sum, leastSum);
    for (let j = 0; j < choices; j++) {
      weight[t * choices + j] = slot[t * choices + j] === none ? 0 : of(j) / divisor;
    }
  }
}

/** probabilities, choice, slot, dWeight → dProbability */
export function weighBackward(
  { tokens, experts, choices }: RouterSizes,
  normalize: Normalization,
  [probability, choice, slot, dWeight, dProbability]: readonly HostArray[],
): void {
  dProbability.fill(0);
  for (let t = 0; t < tokens; t++) {
    let sum = 0, flowing = 0;
    for (let j = 0; j < choices; j++) {
      const at = t * choices + j, e = choice[at];
      if (e >= experts) continue;
      const p = probability[t * experts + e];
      if (counts(normalize, slot[at])) sum += p;
      if (slot[at] !== none) flowing += dWeight[at] * p;
    }
    const divisor = normalize === "none" ? 1 : Math.max(sum, leastSum);
    const shared = normalize === "none" || sum < leastSum ? 0 : flowing / divisor / divisor;
    for (let j = 0; j < choices; j++) {
      const at = t * choices + j, e = choice[at];
      if (e >= experts) continue;
      dProbability[t * experts + e] = (slot[at] === none ? 0 : dWeight[at] / divisor) -
        (counts(normalize, slot[at]) ? shared : 0);
    }
  }
}

/** probabilities, choice → loss, load */
export function balanceForward(
  { tokens, experts, choices }: RouterSizes,
  counted: number,
  [probability, choice, loss, load]: readonly HostArray[],
): void {
  load.fill(0);
  for (let t = 0; t < tokens; t++) {
    for (let j = 0; j < counted; j++) {
      const e = choice[t * choices + j];
      if (e < experts) load[e]++;
    }
  }
  let sum = 0;
  for (let e = 0; e < experts; e++) {
    let column = 0;
    for (let t = 0; t < tokens; t++) column += probability[t * experts + e];
    sum += load[e] * column;
  }
  loss[0] = sum * experts / (tokens * counted) / tokens;
}

/** load, weight → dProbability */
export function balanceBackward(
  { tokens, experts }: RouterSizes,
  counted: number,
  [load, weight, dProbability]: readonly HostArray[],
): void {
  const factor = weight[0] * experts / (tokens * counted) / tokens;
  for (let t = 0; t < tokens; t++) {
    for (let e = 0; e < experts; e++) dProbability[t * experts + e] = factor * load[e];
  }
}
