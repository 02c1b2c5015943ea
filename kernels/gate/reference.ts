/** Gated activations on the host, in double: the oracle of the kernels beside this file. */
import type { HostArray } from "../kernel.ts";
import type { Activation } from "./mod.ts";

/** Error function to double precision: erf(x) = 2/√π e^(−x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!, whose terms never cancel. */
export function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, sum = x;
  for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum); n++) {
    term *= 2 * x * x / (2 * n + 1);
    sum += term;
  }
  return 2 / Math.sqrt(Math.PI) * Math.exp(-x * x) * sum;
}

const tanhScale = Math.sqrt(2 / Math.PI), tanhCube = 0.044715;

/** Value and slope of an activation at `x`. */
function activate(activation: Activation, x: number): { value: number; slope: number } {
  if (activation === "silu") {
    const sigmoid = 1 / (1 + Math.exp(-x));
    return { value: x * sigmoid, slope: sigmoid * (1 + x * (1 - sigmoid)) };
  }
  if (activation === "gelu") {
    const below = 0.5 * (1 + erf(x / Math.SQRT2)); // the normal distribution below x
    return { value: x * below, slope: below + x * Math.exp(-0.5 * x * x) / Math.sqrt(2 * Math.PI) };
  }
  const t = Math.tanh(tanhScale * (x + tanhCube * x ** 3));
  const inner = tanhScale * (1 + 3 * tanhCube * x * x);
  return { value: 0.5 * x * (1 + t), slope: 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner };
}

/** gate, up → y. */
export function gateForward(activation: Activation, [gate, up, y]: readonly HostArray[]): void {
  for (let i = 0; i < y.length; i++) y[i] = activate(activation, gate[i]).value * up[i];
}

/** gate, up, dY → dGate, dUp. */
export function gateBackward(activation: Activation, [gate, up, dY, dGate, dUp]: readonly HostArray[]): void {
  for (let i = 0; i < dY.length; i++) {
    const { value, slope } = activate(activation, gate[i]);
    dGate[i] = dY[i] * up[i] * slope;
    dUp[i] = dY[i] * value;
  }
}

/** The two halves of every row of x `[rows, 2 columns]`, each one after the other. */
export function halves(x: HostArray, columns: number): { gate: HostArray; up: HostArray } {
  const gate = x.slice(0, x.length / 2), up = gate.slice();
  for (let begin = 0; begin < gate.length; begin += columns) {
    gate.set(x.subarray(2 * begin, 2 * begin + columns), begin);
    up.set(x.subarray(2 * begin + columns, 2 * (begin + columns)), begin);
  }
  return { gate, up };
}
