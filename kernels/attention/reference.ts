/** Attention on the host, in double: the oracle of the forms beside this file. One token's scores exist at a time. */
import type { HostArray } from "../kernel.ts";
import type { AttentionShape } from "./shape.ts";

/** q, k, v, start, end → o, logSumExp. */
export function attentionForward(
  { tokens, heads, kvHeads, headDim, scale }: AttentionShape,
  [q, k, v, start, _end, o, logSumExp]: readonly HostArray[],
): void {
  const group = heads / kvHeads;
  const weights = new Float64Array(tokens), output = new Float64Array(headDim);
  for (let t = 0; t < tokens; t++) {
    for (let h = 0; h < heads; h++) {
      const row = (t * heads + h) * headDim, kvHead = Math.floor(h / group);
      const at = (j: number) => (j * kvHeads + kvHead) * headDim;
      let largest = -Infinity;
      for (let j = start[t]; j <= t; j++) {
        weights[j] = scale * dot(q, row, k, at(j), headDim);
        largest = Math.max(largest, weights[j]);
      }
      let sum = 0;
      output.fill(0);
      for (let j = start[t]; j <= t; j++) {
        const weight = Math.exp(weights[j] - largest), base = at(j);
        sum += weight;
        for (let c = 0; c < headDim; c++) output[c] += weight * v[base + c];
      }
      for (let c = 0; c < headDim; c++) o[row + c] = output[c] / sum;
      logSumExp[t * heads + h] = largest + Math.log(sum);
    }
  }
}

/**
 * q, k, v, o, logSumExp, dO, start, end → dQ, dK, dV (scratch is not used). With P = exp(scores − logSumExp):
 * dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP − rowsum(dO o)), dQ = scale dS K, dK = scale dSᵀ Q.
 */
export function attentionBackward(
  { tokens, heads, kvHeads, headDim, scale }: AttentionShape,
  [q, k, v, o, logSumExp, dO, start, _end, dQ, dK, dV]: readonly HostArray[],
): void {
  const group = heads / kvHeads;
  const sumQ = new Float64Array(headDim);
  const sumK = new Float64Array(tokens * kvHeads * headDim), sumV = new Float64Array(tokens * kvHeads * headDim);
  for (let t = 0; t < tokens; t++) {
    for (let h = 0; h < heads; h++) {
      const row = (t * heads + h) * headDim, kvHead = Math.floor(h / group);
      const delta = dot(dO, row, o, row, headDim);
      sumQ.fill(0);
      for (let j = start[t]; j <= t; j++) {
        const base = (j * kvHeads + kvHead) * headDim;
        const weight = Math.exp(scale * dot(q, row, k, base, headDim) - logSumExp[t * heads + h]);
        const dScore = scale * weight * (dot(dO, row, v, base, headDim) - delta);
        for (let c = 0; c < headDim; c++) {
          sumQ[c] += dScore * k[base + c];
          sumK[base + c] += dScore * q[row + c];
          sumV[base + c] += weight * dO[row + c];
        }
      }
      for (let c = 0; c < headDim; c++) dQ[row + c] = sumQ[c];
    }
  }
  dK.set(sumK);
  dV.set(sumV);
}

function dot(a: HostArray, aBase: number, b: HostArray, bBase: number, length: number): number {
  let sum = 0;
  for (let c = 0; c < length; c++) sum += a[aBase + c] * b[bBase + c];
  return sum;
}
