/** The product in the middle of a gated feed-forward layer: an activation of one half times the other half. */
import { type DeviceTraits, type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { itemText, requireSizes, vectorPrelude } from "../norm/rows.ts";
import { type Storage, storage, type Stored } from "../storage.ts";
import * as reference from "./reference.ts";

/** `gelu` is the exact form, x·Φ(x); `gelu_tanh` its approximation by a hyperbolic tangent. */
export type Activation = "silu" | "gelu" | "gelu_tanh";

export interface GateSizes extends Stored {
  /** Elements of each operand. */
  readonly length: number;
  readonly activation: Activation;
}

/**
 * `share(x)`, with activation = x · share(x), and `slope(x, share)`, the activation's derivative. Exponents are never
 * positive, so nothing overflows. Φ follows Abramowitz and Stegun 7.1.26 (absolute error of erf below 1.5e-7); the
 * tanh form uses (1 + tanh z) / 2 = sigmoid(2 z).
 */
const activationText: Readonly<Record<Activation, string>> = {
  silu: `
fn share(x: V) -> V { return sigmoid(x); }
fn slope(x: V, s: V) -> V { return s * (1f + x * (1f - s)); }`,
  gelu: `
fn share(x: V) -> V {
  let t = 1f / (1f + 0.3275911f * 0.70710678f * abs(x));
  let series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  let tail = 0.5f * series * exp(-0.5f * x * x);
  return select(tail, 1f - tail, x >= V());
}
fn slope(x: V, s: V) -> V { return s + x * exp(-0.5f * x * x) * 0.39894228f; }`,
  gelu_tanh: `
fn share(x: V) -> V { return sigmoid(1.5957691f * x * (1f + 0.044715f * x * x)); }
fn slope(x: V, s: V) -> V { return s + x * s * (1f - s) * 1.5957691f * (1f + 0.134145f * x * x); }`,
};
const sigmoidText = `
fn sigmoid(x: V) -> V {
  let e = exp(-abs(x));
  return select(e, V(1f), x >= V()) / (1f + e);
}`;

function gateText(
  traits: DeviceTraits,
  { length, activation, columns }: GateSizes & { readonly columns?: number },
  operands: readonly Operand[],
  body: (storage: Storage) => string,
) {
  const width = (columns ?? length) % 4 === 0 ? 4 : 1;
  const { open, workgroups } = itemText(length / width);
  const elements = Object.fromEntries(operands.map(({ name }) => [name, "V"]));
  const stored = storage(traits, operands, elements, width, operands.map(({ name }) => name));
  const code = `${stored.directives}${vectorPrelude(width)}
${stored.bindings}
${activation === "gelu" ? "" : sigmoidText}
${activationText[activation]}
${open}${columns === undefined ? "" : halvesText(columns / width)}
  ${body(stored)}
}
`;
  return [{ code, workgroups, ...stored.bound(operands.map((_, index) => index)) }];
}

/** Where the two halves of a row lie: `first` and `second`, of vectors that `columns` of are in each. */
const halvesText = (columns: number) => `
  let first = i + i / ${columns}u * ${columns}u;
  let second = first + ${columns}u;`;

function checkGate(name: string, { length, activation }: GateSizes): void {
  requireSizes(name, { length });
  if (!Object.hasOwn(activationText, activation)) {
    throw new TypeError(
      `Cannot make ${name}: activation must be one of ${
        Object.keys(activationText).join(", ")
      }, current value is ${activation}`,
    );
  }
}

/**
 * `y = activation(gate) · up`, element by element.
 *
 * Operands: gate `[length]`, up `[length]` → y `[length]`.
 *
 * @throws {RangeError} when the length is not a positive whole number
 * @throws {TypeError} when the activation is unknown
 *
 * @example
 * ```ts
 * import { gateForward } from "./mod.ts";
 * const y = new Float32Array(1);
 * gateForward({ length: 1, activation: "silu" }).reference([new Float32Array([0]), new Float32Array([5]), y]);
 * console.assert(y[0] === 0);
 * ```
 */
export function gateForward(sizes: GateSizes): Kernel {
  const { length, activation, type = "f32" } = sizes;
  checkGate("gate.forward", sizes);
  const operands: readonly Operand[] = [
    { name: "gate", type, length, access: "read" },
    { name: "up", type, length, access: "read" },
    { name: "y", type, length, access: "write" },
  ];
  return {
    name: `gate.forward.${activation}`,
    operands,
    cost: { flops: 5 * length, bytes: leastBytes(operands) },
    reference: (views) => reference.gateForward(activation, views),
    passes: (traits) =>
      gateText(
        traits,
        sizes,
        operands,
        ({ load, store }) => `let x = ${load("gate", "i")};\n  ${store("y", "i", `x * share(x) * ${load("up", "i")}`)}`,
      ),
  };
}

/**
 * Gradient of {@linkcode gateForward}.
 *
 * Operands: gate `[length]`, up `[length]`, dY `[length]` → dGate `[length]`, dUp `[length]`.
 *
 * @throws {RangeError} when the length is not a positive whole number
 * @throws {TypeError} when the activation is unknown
 */
export function gateBackward(sizes: GateSizes): Kernel {
  const { length, activation, type = "f32" } = sizes;
  checkGate("gate.backward", sizes);
  const operands: readonly Operand[] = [
    { name: "gate", type, length, access: "read" },
    { name: "up", type, length, access: "read" },
    { name: "dY", type, length, access: "read" },
    { name: "dGate", type, length, access: "write" },
    { name: "dUp", type, length, access: "write" },
  ];
  return {
    name: `gate.backward.${activation}`,
    operands,
    cost: { flops: 10 * length, bytes: leastBytes(operands) },
    reference: (views) => reference.gateBackward(activation, views),
    passes: (traits) =>
      gateText(
        traits,
        sizes,
        operands,
        ({ load, store }) =>
          `let x = ${load("gate", "i")};
  let s = share(x);
  let upstream = ${load("dY", "i")};
  ${store("dGate", "i", `upstream * ${load("up", "i")} * slope(x, s)`)}
  ${store("dUp", "i", "upstream * x * s")}`,
      ),
  };
}

export interface PairedGateSizes extends Omit<GateSizes, "length"> {
  readonly rows: number;
  /** Of each half. */
  readonly columns: number;
}

/**
 * The gate of two halves that one product makes side by side: `y = activation(x[:, :columns]) · x[:, columns:]`.
 *
 * Operands: x `[rows, 2 columns]` → y `[rows, columns]`.
 *
 * @throws {RangeError} when a size is not a positive whole number
 * @throws {TypeError} when the activation is unknown
 */
export function pairedGateForward({ rows, columns, activation, type = "f32" }: PairedGateSizes): Kernel {
  const length = rows * columns;
  requireSizes("gate.paired.forward", { rows, columns });
  checkGate("gate.paired.forward", { length, activation });
  const operands: readonly Operand[] = [
    { name: "x", type, length: 2 * length, access: "read" },
    { name: "y", type, length, access: "write" },
  ];
  return {
    name: `gate.forward.${activation}`,
    operands,
    cost: { flops: 5 * length, bytes: leastBytes(operands) },
    reference: ([x, y]) => {
      const { gate, up } = reference.halves(x, columns);
      reference.gateForward(activation, [gate, up, y]);
    },
    passes: (traits) =>
      gateText(traits, { length, activation, columns }, operands, ({ load, store }) =>
        `let x0 = ${load("x", "first")};
  ${store("y", "i", `x0 * share(x0) * ${load("x", "second")}`)}`),
  };
}

/**
 * Gradient of {@linkcode pairedGateForward}.
 *
 * Operands: x `[rows, 2 columns]`, dY `[rows, columns]` → dX, shaped as x.
 *
 * @throws {RangeError} when a size is not a positive whole number
 * @throws {TypeError} when the activation is unknown
 */
export function pairedGateBackward({ rows, columns, activation, type = "f32" }: PairedGateSizes): Kernel {
  const length = rows * columns;
  requireSizes("gate.paired.backward", { rows, columns });
  checkGate("gate.paired.backward", { length, activation });
  const operands: readonly Operand[] = [
    { name: "x", type, length: 2 * length, access: "read" },
    { name: "dY", type, length, access: "read" },
    { name: "dX", type, length: 2 * length, access: "write" },
  ];
  return {
    name: `gate.backward.${activation}`,
    operands,
    cost: { flops: 10 * length, bytes: leastBytes(operands) },
    reference: ([x, dY, dX]) => {
      const { gate, up } = reference.halves(x, columns), dGate = dY.slice(), dUp = dY.slice();
      reference.gateBackward(activation, [gate, up, dY, dGate, dUp]);
      for (let row = 0; row < rows; row++) {
        dX.set(dGate.subarray(row * columns, (row + 1) * columns), 2 * row * columns);
        dX.set(dUp.subarray(row * columns, (row + 1) * columns), (2 * row + 1) * columns);
      }
    },
    passes: (traits) =>
      gateText(traits, { length, activation, columns }, operands, ({ load, store }) =>
        `let x0 = ${load("x", "first")};
  let s = share(x0);
  let upstream = ${load("dY", "i")};
  let other = ${load("x", "second")};
  ${store("dX", "first", "upstream * other * slope(x0, s)")}
  ${store("dX", "second", "upstream * x0 * s")}`),
  };
}
