/**
 * `troupe bench kernels`: every kernel of a run at the run's own sizes, and every family at another size. A kernel is
 * checked against its reference first, then timed.
 */
import { adamw, adamwScalars } from "../../kernels/adamw/mod.ts";
import { decode, encode, isHalf, rounded } from "../../kernels/host.ts";
import type { HostArray, Kernel, Operand } from "../../kernels/kernel.ts";
import { squaredNorm } from "../../kernels/reduce/mod.ts";
import type { Backend, DeviceBuffer } from "../backend/backend.ts";
import { resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { settle } from "../graph/program.ts";
import { moduleNames } from "../models/registry.ts";
import { initialTensor } from "../nn/random.ts";
import { singleRank } from "../parallel/mesh.ts";
import { planModel } from "../train/model.ts";
import { openBarrier, type Report, round, secondsSince } from "./bench_line.ts";

/** A timing repeats a kernel until it lasts this long, so that the wait for the device does not count. */
const shortestTiming = 0.03;
/** Beyond this many operations the reference would take minutes, and the kernel goes unchecked, which its line says. */
const mostCheckedFlops = 5e9;
/** Largest error that passes, relative to the element or the operand's root mean square, whichever is larger. */
const largestError = 1e-3;

const ofOneStep = {
  data: { seq_len: 256, micro_bsz: 1, total_steps: 1 },
  adam: { lr: 1e-3 },
  ckpt: { enable_save_ckpt: false },
};
const small = { num_layers: 1, hidden_size: 256, num_attention_heads: 4, vocab_size: 1000 };

/** Another size of most families, and the families that a run may not have: a normalised head, biases, dropout. */
const otherRecords = [
  {
    JOB_NAME: "medium",
    model_type: "INTERNLM2",
    model: { ...small, hidden_size: 512, num_attention_heads: 8, num_kv_attention_heads: 2, vocab_size: 4000 },
    ...ofOneStep,
  },
  { JOB_NAME: "normalised head", model_type: "INTERNLM2", model: { ...small, norm_head: true }, ...ofOneStep },
  {
    JOB_NAME: "biases, layer norm and dropout",
    model_type: "INTERNLM",
    model: { ...small, norm_type: "layernorm", drop_rate: 0.1 },
    ...ofOneStep,
  },
];

export const otherRuns = (): ResolvedConfig[] =>
  otherRecords.map((record) => resolveConfig(record, { modelTypes: moduleNames() }));

/** Half types are rounded where they are stored, maybe to the other neighbour than the reference's. */
const allowedError = ({ operands }: Kernel): number =>
  largestError + Math.max(...operands.map(({ type }) => type === "bf16" ? 2 ** -7 : type === "f16" ? 2 ** -10 : 0));

interface Found {
  readonly kernel: Kernel;
  readonly run: string;
  /** Dispatches of it in the forward and backward pass of one micro-batch, or in one update. */
  calls: number;
}

const keyOf = ({ name, operands }: Kernel) =>
  `${name} ${operands.map(({ name, type, length, access }) => `${name} ${type} ${length} ${access}`).join(" ")}`;

/** Each kernel once, with the number of its calls. */
export function kernelsOf(config: ResolvedConfig, traits: Pick<Backend["traits"], "limits">): Found[] {
  const { plan: { segments, state } } = planModel(config, traits, singleRank);
  const found = new Map<string, Found>();
  const add = (kernel: Kernel) => {
    const known = found.get(keyOf(kernel));
    if (known) known.calls++;
    else found.set(keyOf(kernel), { kernel, run: config.JOB_NAME, calls: 1 });
  };
  for (const instruction of [...segments["forward 0"].instructions, ...segments["backward 0"].instructions]) {
    if (instruction.kind === "dispatch") add(instruction.kernel);
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
function contentOf(operand: Operand, { operands }: Kernel): HostArray {
  const { name, type, length, access } = operand;
  const view = viewOf(isHalf(type) ? "f32" : type, new ArrayBuffer(length * 4));
  if (access === "write" || access === "scratch") return view;
  if (name === "scalars") {
    view.set(adamwScalars({ lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.01, step: 3 }));
  } else if (type === "f32" || isHalf(type)) {
    view.set(rounded(type, initialTensor({ kind: "normal", std: 1 }, { seed: 1, name, length })));
    if (name === "secondMoment") view.forEach((value, i) => view[i] = Math.abs(value)); // a sum of squares
  } else if (name === "end") view.fill(length); // one segment from the first token to the last
  else if (name === "positions") view.forEach((_, i) => view[i] = i);
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

interface Measured {
  /** Of one dispatch, the best of `repeats` timings. */
  readonly seconds: number;
  /** Undefined where the reference would take too long. */
  readonly error: number | undefined;
}

/** Runs a kernel against its reference, then alone against the clock. */
export async function measureKernel(kernel: Kernel, backend: Backend, repeats: number): Promise<Measured> {
  const buffers: DeviceBuffer[] = [];
  using barrier = openBarrier(backend);
  try {
    const views = kernel.operands.map((operand) => contentOf(operand, kernel));
    const ranges = views.map((view, i) => {
      const { name, type } = kernel.operands[i]!, stored = storedAs(type, view);
      const buffer = backend.allocate(Math.max(4, stored.byteLength), `${kernel.name} ${name}`);
      buffers.push(buffer);
      const range = { buffer, offset: 0, bytes: buffer.bytes };
      backend.upload(range, stored);
      return range;
    });
    const command = { kind: "dispatch", kernel, ranges } as const;
    const once = await backend.prepare([command]);
    backend.submit(once);
    const written = kernel.operands.flatMap(({ access }, i) => access === "write" || access === "update" ? [i] : []);
    const read = await settle(backend.read(written.map((i) => ranges[i]!)));
    let error: number | undefined;
    if (kernel.cost.flops <= mostCheckedFlops) {
      kernel.reference(views);
      error = Math.max(
        ...written.map((operand, k) =>
          largestDifference(viewOf(kernel.operands[operand]!.type, read[k]!.buffer), views[operand]!)
        ),
      );
    }
    const time = async (list: typeof once, submissions: number) => {
      const started = performance.now();
      for (let i = 0; i < submissions; i++) backend.submit(list);
      await barrier.wait();
      return secondsSince(started);
    };
    const dispatches = Math.min(1000, Math.ceil(shortestTiming / await time(once, 1)));
    // Many dispatches a submission, as in a step; preparing more would take longer than timing them.
    const each = Math.min(32, dispatches), submissions = Math.ceil(dispatches / each);
    const list = await backend.prepare(Array.from({ length: each }, () => command));
    let seconds = Infinity;
    for (let i = 0; i < repeats; i++) seconds = Math.min(seconds, await time(list, submissions) / (each * submissions));
    return { seconds, error };
  } finally {
    buffers.forEach((buffer) => backend.release(buffer));
  }
}

/**
 * Reports every kernel of the runs, each kernel once. Content is random, so attention sees one segment, the most that
 * there is to do.
 *
 * @returns whether every checked kernel agrees with its reference
 */
export async function benchKernels(
  runs: readonly ResolvedConfig[],
  { backend, repeats, report }: { backend: Backend; repeats: number; report: Report },
): Promise<boolean> {
  const seen = new Set<string>();
  let allAgree = true;
  for (const config of runs) {
    let sum = 0;
    for (const { kernel, run, calls } of kernelsOf(config, backend.traits)) {
      if (seen.has(keyOf(kernel))) continue;
      seen.add(keyOf(kernel));
      const { seconds, error } = await measureKernel(kernel, backend, repeats);
      const { flops, bytes } = kernel.cost, agrees = error === undefined || error <= allowedError(kernel);
      const gflops = round(flops / seconds / 1e9), gbs = round(bytes / seconds / 1e9);
      sum += seconds * calls;
      allAgree &&= agrees;
      // Above so many operations a byte, arithmetic is what limits.
      const computes = flops / bytes >= 4;
      report({
        bench: "kernels",
        figure: kernel.name,
        value: computes ? gflops : gbs,
        unit: computes ? "GFLOP/s" : "GB/s",
        run,
        operands: kernel.operands.map(({ name, length }) => `${name} ${length}`).join(", "),
        seconds: round(seconds),
        repeats,
        gflops,
        gbs,
        least_flops: flops,
        least_bytes: bytes,
        calls,
        error: error === undefined ? "not checked: its reference would take minutes" : round(error),
        agrees,
      });
    }
    if (config === runs[0]) {
      report({
        bench: "kernels",
        figure: "all calls of a micro-batch and an update",
        value: round(sum),
        unit: "s",
        run: config.JOB_NAME,
        measured: "sum of best times, each times its calls, attention over one segment",
      });
    }
  }
  return allAgree;
}
