/** Kernels tried out alone on a device: content that they can work with, what they make of it, and how long they take. */
import { adamw, adamwScalars } from "../../kernels/adamw/mod.ts";
import { groupedTokens, groupTokens } from "../../kernels/embedding/mod.ts";
import { decode, encode, isHalf, rounded } from "../../kernels/host.ts";
import type { HostArray, Kernel, Operand } from "../../kernels/kernel.ts";
import { squaredNorm } from "../../kernels/reduce/mod.ts";
import type { Backend, DeviceBuffer, Range } from "../backend/backend.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { settle } from "../graph/program.ts";
import { initialTensor } from "../nn/random.ts";
import { type Mesh, singleRank } from "../parallel/mesh.ts";
import { planModel } from "./model.ts";

/** Largest error that passes, relative to the element or the operand's root mean square, whichever is larger. */
const largestError = 1e-3;

/** Half types are rounded where they are stored, maybe to the other neighbour than the reference's. */
export const allowedError = ({ operands }: Kernel): number =>
  largestError + Math.max(...operands.map(({ type }) => type === "bf16" ? 2 ** -7 : type === "f16" ? 2 ** -10 : 0));

export interface FoundKernel {
  readonly kernel: Kernel;
  readonly run: string;
  /** Dispatches of it in the forward and backward pass of one micro-batch, or in one update. */
  calls: number;
}

/** Kernels of one key are equal. */
export const kernelKey = ({ name, operands }: Kernel): string =>
  `${name} ${operands.map(({ name, type, length, access }) => `${name} ${type} ${length} ${access}`).join(" ")}`;

/** Each kernel of a run once, with the number of its calls. */
export function kernelsOf(
  config: ResolvedConfig,
  traits: Pick<Backend["traits"], "limits">,
  mesh: Mesh = singleRank,
): FoundKernel[] {
  const { plan: { segments, state } } = planModel(config, traits, mesh);
  const found = new Map<string, FoundKernel>();
  const add = (kernel: Kernel) => {
    const known = found.get(kernelKey(kernel));
    if (known) known.calls++;
    else found.set(kernelKey(kernel), { kernel, run: config.JOB_NAME, calls: 1 });
  };
  for (const [name, { instructions }] of Object.entries(segments)) {
    if (name.startsWith("evaluate")) continue;
    for (const instruction of instructions) if (instruction.kind === "dispatch") add(instruction.kernel);
  }
  for (const { bytes } of state.runs) [squaredNorm({ length: bytes / 4 }), adamw({ length: bytes / 4 })].forEach(add);
  return [...found.values()];
}

function viewOf(type: Operand["type"], memory: ArrayBuffer): HostArray {
  switch (type) {
    case "f32":
      return new Float32Array(memory);
    case "u32":
      return new Uint32Array(memory);
    case "i32":
      return new Int32Array(memory);
    case "f16":
    case "bf16":
      return decode(type, new Uint16Array(memory));
    default:
      return type satisfies never;
  }
}

/** Numbers as a device stores them, in whole words. */
function storedAs(type: Operand["type"], view: HostArray): ArrayBufferView {
  if (!isHalf(type)) return view;
  const halves = encode(type, view), words = new Uint16Array(2 * Math.ceil(halves.length / 2));
  words.set(halves);
  return words;
}

/** Content that a kernel can work with: normal numbers, and integers that name rows, places and segments that exist. */
function contentOf(operand: Operand, { operands, segment }: Kernel): HostArray {
  const { name, type, length, access } = operand;
  const view = viewOf(isHalf(type) ? "f32" : type, new ArrayBuffer(length * 4));
  if (access === "write" || access === "scratch") return view;
  if (name === "scalars") {
    view.set(adamwScalars({ lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.01, step: 3 }));
  } else if (type === "f32" || isHalf(type)) {
    view.set(rounded(type, initialTensor({ kind: "normal", std: 1 }, { seed: 1, name, length })));
    if (name === "secondMoment") view.forEach((value, i) => view[i] = Math.abs(value)); // a sum of squares
  } else if (segment !== undefined && (name === "start" || name === "end")) {
    view.forEach((_, i) => {
      const first = i - i % segment;
      view[i] = name === "start" ? first : Math.min(first + segment, length);
    });
  } else if (name === "end") view.fill(length); // one segment from the first token to the last
  else if (name === "groups") {
    view.set(groupTokens(Uint32Array.from({ length: groupedTokens(length) }, (_, i) => (i * 7919) % 100)));
  } else if (name === "positions") view.forEach((_, i) => view[i] = i);
  else if (name === "labels" || name === "ids") {
    const longest = Math.max(...operands.map(({ length }) => length));
    const rows = name === "labels" ? longest / length : 100; // labels lie within the vocabulary
    view.forEach((_, i) => view[i] = (i * 7919) % rows);
  }
  return view; // start 0, and any other integer operand: 0 names something everywhere
}

/** Largest error, relative to the element or to the root mean square, whichever is larger. */
function largestDifference(actual: HostArray, expected: HostArray): number {
  let squares = 0, worst = 0;
  for (const value of expected) squares += value * value;
  const scale = Math.sqrt(squares / expected.length);
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!);
    if (Number.isNaN(difference)) return Infinity;
    if (difference > 0) worst = Math.max(worst, difference / Math.max(Math.abs(expected[i]!), scale));
  }
  return worst;
}

/** Largest error of any operand: of the integers too, which must be equal. */
export const largestErrorOf = (actual: readonly HostArray[], expected: readonly HostArray[]): number =>
  Math.max(...actual.map((view, index) => largestDifference(view, expected[index]!)));

/** A kernel's operands on a device, and what forms of it make of them. */
export class KernelTrial implements Disposable {
  readonly #buffers: DeviceBuffer[] = [];
  readonly #ranges: Range[];
  readonly #written: readonly number[];
  readonly #views: readonly HostArray[];

  constructor(readonly kernel: Kernel, readonly backend: Backend) {
    this.#views = kernel.operands.map((operand) => contentOf(operand, kernel));
    this.#written = kernel.operands.flatMap(({ access }, i) => access === "write" || access === "update" ? [i] : []);
    try {
      this.#ranges = this.#views.map((view, i) => {
        const { name, type } = kernel.operands[i]!, bytes = storedAs(type, view).byteLength;
        const buffer = backend.allocate(Math.max(4, bytes), `${kernel.name} ${name}`);
        this.#buffers.push(buffer);
        return { buffer, offset: 0, bytes: buffer.bytes };
      });
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
    this.#fill();
  }

  /** Content anew; what a form does not write is then no other form's. */
  #fill(): void {
    this.#views.forEach((view, i) =>
      this.backend.upload(this.#ranges[i]!, storedAs(this.kernel.operands[i]!.type, view))
    );
  }

  /** So many dispatches of a form, ready to be submitted. */
  prepare(form: Kernel = this.kernel, count = 1) {
    const command = { kind: "dispatch", kernel: form, ranges: this.#ranges } as const;
    return this.backend.prepare(Array.from({ length: count }, () => command));
  }

  /** What one dispatch writes, from the content as it was at first. */
  async result(list: Awaited<ReturnType<Backend["prepare"]>>): Promise<HostArray[]> {
    this.#fill();
    this.backend.submit(list);
    const read = await settle(this.backend.read(this.#written.map((i) => this.#ranges[i]!)));
    return this.#written.map((operand, k) => viewOf(this.kernel.operands[operand]!.type, read[k]!.buffer));
  }

  /** Waits for all work submitted so far, by reading four bytes back. */
  async wait(): Promise<void> {
    await settle(this.backend.read([{ ...this.#ranges[0]!, bytes: 4 }]));
  }

  /** What the kernel's reference makes of the same. */
  reference(): HostArray[] {
    const views = this.#views.map((view) => view.slice());
    this.kernel.reference(views);
    return this.#written.map((i) => views[i]!);
  }

  [Symbol.dispose](): void {
    this.#buffers.splice(0).forEach((buffer) => this.backend.release(buffer));
  }
}
