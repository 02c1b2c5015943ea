/**
 * The harness of kernel tests: a kernel's WGSL against its own reference, and a gradient's reference against finite
 * differences of the forward one in double. Test-only, so it may import upwards: it opens the WebGPU backend.
 *
 * @example
 * ```ts ignore
 * Deno.test("add() matches its reference", async () => {
 *   await checkKernel(add({ length: 77 }), { a: randomNormal(77, 1), b: randomNormal(77, 2) });
 * });
 * ```
 */
import { assert, AssertionError } from "@std/assert";
import type { Backend, DeviceBuffer, Range } from "../src/backend/backend.ts";
import { openWebGpuBackend } from "../src/backend/webgpu/backend.ts";
import { defaultProvider } from "../src/backend/webgpu/provider.ts";
import { audited, logWords } from "./audit.ts";
import { decode, encode, isHalf, rounded } from "./host.ts";
import type { DeviceTraits, ElementType, HostArray, Kernel } from "./kernel.ts";

let shared: Promise<Backend> | undefined;

/** The WebGPU backend of this test process, opened at the first call (files under `deno test` have one each). */
export function testDevice(): Promise<Backend> {
  return shared ??= openWebGpuBackend(defaultProvider(), { boundsChecks: false });
}

/** Closes the shared device, if open. The next `testDevice()` opens a new one. Needed only to bound memory. */
export async function closeTestDevice(): Promise<void> {
  const opened = shared;
  shared = undefined;
  if (opened !== undefined) (await opened)[Symbol.dispose]();
}

/** Every type that kernels take for activations, for tests of each. */
export const floatTypes = ["f32", "f16", "bf16"] as const;
export const halfTypes = ["f16", "bf16"] as const;

/**
 * Largest relative error of storing a number: half a unit in the last place. Tests allow it beside a kernel's own
 * tolerance, which is therefore the same for all types: a device that truncates or rounds twice fails.
 */
export const storageError: Readonly<Record<ElementType, number>> = {
  f32: 0,
  f16: 2 ** -11,
  bf16: 2 ** -8,
  u32: 0,
  i32: 0,
};

export interface CheckOptions {
  /**
   * Largest |device - reference| / max(|reference|, root mean square of the reference operand), for float operands; a
   * record gives one by operand name. Half-width operands are allowed `storageError` beside it, since the reference's
   * results are not rounded. Integer operands must be equal. @default {1e-5}
   */
  readonly tolerance?: number | Readonly<Record<string, number>>;
  /** Traits to pretend, to reach the form for another device, e.g. `{ subgroupSize: 0, software: false }`. */
  readonly traits?: Partial<DeviceTraits>;
  /**
   * Whether every index of the WGSL is held against its array's length, see `audit.ts`.
   * @default {whether the environment has TROUPE_AUDIT}
   */
  readonly audit?: boolean;
}

/** `deno task audit` runs the tests of kernels so. */
export const auditing = Deno.permissions.querySync({ name: "env", variable: "TROUPE_AUDIT" }).state === "granted" &&
  Boolean(Deno.env.get("TROUPE_AUDIT"));

export interface Checked {
  /** What the device wrote, by operand name. */
  readonly outputs: Readonly<Record<string, HostArray>>;
  /** What the reference wrote. */
  readonly expected: Readonly<Record<string, HostArray>>;
  /** Largest error of any float operand, relative as in `CheckOptions.tolerance`. */
  readonly worst: number;
}

/**
 * Runs a kernel's reference and its WGSL passes on the same inputs and compares every written operand. `inputs` gives
 * all `read` and `update` operands by name; `write` and `scratch` operands start as different garbage on either side,
 * so that an element left unwritten differs. Inputs of half-width operands are rounded first, for both sides alike.
 *
 * @throws {AssertionError} naming each differing operand, its first differing values side by side and its worst error.
 */
export async function checkKernel(
  kernel: Kernel,
  inputs: Readonly<Record<string, ArrayLike<number>>>,
  { tolerance = 1e-5, traits, audit = auditing }: CheckOptions = {},
): Promise<Checked> {
  const backend = await testDevice();
  if (!backend.traits.features.shaderF16 && kernel.operands.some(({ type }) => type === "f16")) {
    console.log(`not compared: ${kernel.name} in f16, as ${backend.traits.description} has no shader-f16`);
    return referenceAlone(kernel, inputs);
  }
  const rendered = traits === undefined ? kernel : withTraits(kernel, traits);
  const host = initialViews(kernel, inputs, 12_345);
  const device = initialViews(kernel, inputs, 54_321);
  kernel.reference(host);

  const written = kernel.operands.flatMap(({ access }, i) => access === "write" || access === "update" ? [i] : []);
  assert(written.length > 0, `${kernel.name} writes no operand`);
  const arrays = audit
    ? await runAudited(backend, rendered, device, written)
    : await runOnDevice(backend, rendered, device, written);

  const outputs: Record<string, HostArray> = {};
  const expected: Record<string, HostArray> = {};
  const faults: string[] = [];
  let worst = 0;
  written.forEach((operand, k) => {
    const { name, type } = kernel.operands[operand];
    outputs[name] = arrays[k];
    expected[name] = host[operand];
    const integer = type === "u32" || type === "i32";
    const allowed = integer
      ? 0
      : storageError[type] + (typeof tolerance === "number" ? tolerance : tolerance[name] ?? 1e-5);
    const comparison = compare(name, arrays[k], host[operand], allowed);
    worst = Math.max(worst, comparison.worst);
    if (comparison.fault !== undefined) faults.push(comparison.fault);
  });
  if (faults.length > 0) {
    throw new AssertionError(`${kernel.name} on ${backend.traits.description} differs:\n${faults.join("\n")}`);
  }
  return { outputs, expected, worst };
}

/** What a kernel's reference writes, as if a device had, for tests that go on with it. */
function referenceAlone(kernel: Kernel, inputs: Readonly<Record<string, ArrayLike<number>>>): Checked {
  const views = initialViews(kernel, inputs, 12_345);
  kernel.reference(views);
  const written = kernel.operands.flatMap(({ name, type, access }, i) =>
    access === "write" || access === "update" ? [[name, viewWith(type, rounded(type, views[i]))] as const] : []
  );
  const outputs = Object.fromEntries(written);
  return { outputs, expected: outputs, worst: 0 };
}

function viewWith(type: ElementType, values: ArrayLike<number>): HostArray {
  const view = viewOf(type, new ArrayBuffer(values.length * 4));
  view.set(values);
  return view;
}

/** As `runOnDevice`, and throws where an index left its array. */
async function runAudited(
  backend: Backend,
  kernel: Kernel,
  views: readonly HostArray[],
  wanted: readonly number[],
): Promise<HostArray[]> {
  const watched = audited(kernel), log = kernel.operands.length;
  const arrays = await runOnDevice(backend, watched, [...views, new Uint32Array(logWords)], [...wanted, log]);
  const fault = watched.fault(arrays.pop()!);
  if (fault !== undefined) throw new AssertionError(`An index is outside its array: ${fault}`);
  return arrays;
}

/** Runs one kernel on the device from host views, and returns the operands asked for. */
async function runOnDevice(
  backend: Backend,
  kernel: Kernel,
  views: readonly HostArray[],
  wanted: readonly number[],
): Promise<HostArray[]> {
  const offset = 256; // not zero, as in an arena
  const buffers: DeviceBuffer[] = [];
  try {
    const ranges: Range[] = views.map((view, i) => {
      const { name, type } = kernel.operands[i];
      const stored = isHalf(type) ? encode(type, view) : view;
      const bytes = Math.ceil(stored.byteLength / 4) * 4; // whole words
      const buffer = backend.allocate(offset + bytes, `${kernel.name} ${name}`);
      buffers.push(buffer);
      const range = { buffer, offset, bytes };
      backend.upload(range, stored);
      return range;
    });
    backend.submit(await backend.prepare([{ kind: "dispatch", kernel, ranges }]));
    const ticket = backend.read(wanted.map((i) => ranges[i]));
    await ticket.ready();
    const bytes = ticket.take();
    await backend.finish();
    return wanted.map((i, k) => {
      const { type, length } = kernel.operands[i];
      return isHalf(type) ? decode(type, new Uint16Array(bytes[k].buffer, 0, length)) : viewOf(type, bytes[k].buffer);
    });
  } catch (error) {
    // A device that reported an error stays failed: let the next test have a fresh one.
    await closeTestDevice();
    throw error;
  } finally {
    if (shared !== undefined) { for (const buffer of buffers) backend.release(buffer); }
  }
}

function initialViews(
  kernel: Kernel,
  inputs: Readonly<Record<string, ArrayLike<number>>>,
  garbage: number,
): HostArray[] {
  const names = kernel.operands.map(({ name }) => name);
  for (const name of Object.keys(inputs)) {
    if (!names.includes(name)) {
      throw new RangeError(`${kernel.name} has no operand ${name}: it has ${names.join(", ")}`);
    }
  }
  return kernel.operands.map(({ name, type, length, access }) => {
    const view = viewOf(type, new ArrayBuffer(length * 4));
    if (access === "write" || access === "scratch") return view.fill(garbage);
    const input = inputs[name];
    if (input?.length !== length) {
      throw new RangeError(`${kernel.name} needs ${length} elements of ${name}, got ${input?.length ?? "none"}`);
    }
    view.set(rounded(type, input));
    return view;
  });
}

/** A view of an operand as references take it: half-width floats as numbers of `f32`. */
function viewOf(type: ElementType, memory: ArrayBuffer): HostArray {
  switch (type) {
    case "f32":
    case "f16":
    case "bf16":
      return new Float32Array(memory);
    case "u32":
      return new Uint32Array(memory);
    case "i32":
      return new Int32Array(memory);
    default:
      return type satisfies never;
  }
}

function withTraits(kernel: Kernel, traits: Partial<DeviceTraits>): Kernel {
  return {
    name: kernel.name,
    operands: kernel.operands,
    cost: kernel.cost,
    reference: (views) => kernel.reference(views),
    passes: (actual) => kernel.passes({ ...actual, ...traits }),
  };
}

/** Compares one operand; the fault is a table of the first differing values. */
export function compare(
  name: string,
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
): { worst: number; fault?: string } {
  if (actual.length !== expected.length) {
    return { worst: Infinity, fault: `  ${name}: ${actual.length} values, expected ${expected.length}` };
  }
  let squares = 0, finite = 0;
  for (let i = 0; i < expected.length; i++) {
    if (!Number.isFinite(expected[i])) continue;
    squares += expected[i] ** 2;
    finite++;
  }
  const scale = Math.sqrt(squares / Math.max(1, finite));
  let worst = 0, worstIndex = -1, differing = 0;
  const rows: string[] = [];
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i] - expected[i]);
    let error: number;
    if (Object.is(actual[i], expected[i]) || difference === 0) error = 0;
    else if (!Number.isFinite(difference)) error = Infinity;
    else error = difference / Math.max(Math.abs(expected[i]), scale);
    if (error > worst) {
      worst = error;
      worstIndex = i;
    }
    if (error <= tolerance) continue;
    differing++;
    if (rows.length < 8) rows.push(`    [${i}] device ${actual[i]}  reference ${expected[i]}  error ${error}`);
  }
  if (differing === 0) return { worst };
  const head = `  ${name}: ${differing} of ${expected.length} differ by more than ${tolerance}, ` +
    `worst ${worst} at [${worstIndex}]`;
  return { worst, fault: [head, ...rows].join("\n") };
}

/** Central differences of a scalar function of a vector, one element at a time. `x` is restored. */
export function finiteDifference(loss: (x: Float64Array) => number, x: Float64Array, step = 1e-5): Float64Array {
  const gradient = new Float64Array(x.length);
  for (let i = 0; i < x.length; i++) {
    const held = x[i];
    x[i] = held + step;
    const above = loss(x);
    x[i] = held - step;
    const below = loss(x);
    x[i] = held;
    gradient[i] = (above - below) / (2 * step);
  }
  return gradient;
}

export interface GradientOptions {
  /** By operand name of the forward kernel: all that it reads, floats and integers. */
  readonly inputs: Readonly<Record<string, ArrayLike<number>>>;
  /** Operand of the backward kernel that is a gradient → forward operand it is the gradient of. @default `dx` → `x` */
  readonly gradients?: Readonly<Record<string, string>>;
  /** Operand that the backward kernel reads → forward operand it is, `d` + name for an incoming gradient. @default itself */
  readonly operands?: Readonly<Record<string, string>>;
  /** @default {1e-5} */
  readonly step?: number;
  /** As in `CheckOptions.tolerance`. @default {1e-6} */
  readonly tolerance?: number;
}

/**
 * Checks a backward kernel's reference against finite differences of the forward kernel's, both in `Float64Array`. The
 * loss is a random weighting of every float operand that the forward kernel writes and whose gradient the backward
 * kernel reads. Forward operands named `x`, `y` have gradients named `dx`, `dy`, unless the options say otherwise.
 *
 * @throws {AssertionError} as `checkKernel` does.
 */
export function checkGradient(forward: Kernel, backward: Kernel, options: GradientOptions): void {
  const { inputs, gradients = {}, operands = {}, step = 1e-5, tolerance = 1e-6 } = options;
  const views = forward.operands.map(({ name, type, length, access }): HostArray => {
    const view = type === "f32" ? new Float64Array(length) : viewOf(type, new ArrayBuffer(length * 4));
    if (access !== "write" && access !== "scratch") {
      if (inputs[name]?.length !== length) {
        throw new RangeError(
          `${forward.name} needs ${length} elements of ${name}, got ${inputs[name]?.length ?? "none"}`,
        );
      }
      view.set(inputs[name]);
    }
    return view;
  });
  const forwardIndex = (name: string) => forward.operands.findIndex((operand) => operand.name === name);
  const initial = views.map((view) => view.slice());
  const run = () => {
    forward.operands.forEach(({ access }, i) => access === "update" && views[i].set(initial[i]));
    forward.reference(views);
  };
  run();

  // What the backward kernel reads: forward operands as they are now, and random incoming gradients.
  const weights = new Map<number, Float64Array>();
  const backwardViews = backward.operands.map(({ name, type, length, access }, i): HostArray => {
    const view = type === "f32" ? new Float64Array(length) : viewOf(type, new ArrayBuffer(length * 4));
    if (access !== "read") return view;
    const source = operands[name] ?? name;
    const index = forwardIndex(source);
    if (index >= 0) view.set(forward.operands[index].access === "update" ? initial[index] : views[index]);
    else if (inputs[source]) view.set(inputs[source]);
    else {
      const output = source.startsWith("d") ? forwardIndex(source.slice(1)) : -1;
      if (output < 0) throw new RangeError(`${backward.name} reads ${name}, which ${forward.name} does not have`);
      view.set(randomNormal(length, 1000 + i));
      weights.set(output, view as Float64Array);
    }
    return view;
  });
  assert(weights.size > 0, `${backward.name} reads no incoming gradient`);
  backward.reference(backwardViews);

  const loss = () => {
    run();
    let sum = 0;
    for (const [output, weight] of weights) weight.forEach((w, i) => sum += w * views[output][i]);
    return sum;
  };
  const faults: string[] = [];
  let compared = 0;
  backward.operands.forEach(({ name, type, access }, i) => {
    if (type !== "f32" || (access !== "write" && access !== "update")) return;
    const target = forwardIndex(gradients[name] ?? name.replace(/^d/, ""));
    if (target < 0 || (gradients[name] === undefined && !name.startsWith("d"))) return;
    const varied = forward.operands[target].access === "update" ? initial[target] : views[target];
    const numeric = finiteDifference(loss, varied as Float64Array, step);
    compared++;
    const { fault } = compare(name, backwardViews[i], numeric, tolerance);
    if (fault !== undefined) faults.push(fault.replaceAll("device", "backward"));
  });
  assert(compared > 0, `${backward.name} writes no gradient of an operand of ${forward.name}`);
  if (faults.length > 0) {
    throw new AssertionError(`${backward.name} differs from finite differences:\n${faults.join("\n")}`);
  }
}

/** Repeatable numbers in [0, 1): mulberry32 (Tommy Ettinger's 32-bit generator). */
export function randomUniform(length: number, seed: number): Float32Array<ArrayBuffer> {
  let state = seed >>> 0;
  return Float32Array.from({ length }, () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 8) / 2 ** 24;
  });
}

/** Repeatable standard normal numbers (Box and Muller). */
export function randomNormal(length: number, seed: number): Float32Array<ArrayBuffer> {
  const uniform = randomUniform(2 * length, seed);
  return Float32Array.from(
    { length },
    (_, i) => Math.sqrt(-2 * Math.log(1 - uniform[2 * i])) * Math.cos(2 * Math.PI * uniform[2 * i + 1]),
  );
}
