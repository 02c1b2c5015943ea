/**
 * `troupe bench device`: what this machine's device and host do, each figure measured by itself with the parts that a run
 * uses, as a file for `troupe plan --device`.
 */
import { attentionBackward, attentionForward } from "../../kernels/attention/mod.ts";
import { scale } from "../../kernels/elementwise/mod.ts";
import type { FloatType } from "../../kernels/host.ts";
import type { Kernel } from "../../kernels/kernel.ts";
import { matmul } from "../../kernels/matmul/mod.ts";
import type { Backend, CommandList, DeviceBuffer, Range } from "../backend/backend.ts";
import { settle } from "../graph/program.ts";
import type { DeviceModel } from "../train/hardware.ts";
import { benchComm } from "./bench_comm.ts";
import { openBarrier, round, secondsSince } from "./bench_line.ts";
import { selfCommand } from "./self.ts";

/** Sizes of what is timed: a device that computes in software gets less to do. */
interface Sizes {
  readonly matmul: number;
  readonly tokens: number;
  readonly moved: number;
  readonly hostBytes: number;
}
const large: Sizes = { matmul: 4096, tokens: 2048, moved: 1 << 28, hostBytes: 64 << 20 };
const small: Sizes = { matmul: 256, tokens: 128, moved: 1 << 22, hostBytes: 16 << 20 };

const isSoftware = ({ name, traits }: Backend) => name !== "webgpu" || traits.software;

/** A kernel on buffers of its own. What they hold does not matter here: zeros, and places that exist. */
async function prepared(kernel: Kernel, backend: Backend, times: number) {
  const buffers: DeviceBuffer[] = kernel.operands.map(({ name, type, length }) => {
    const bytes = Math.max(4, Math.ceil(length * (type === "f16" || type === "bf16" ? 2 : 4) / 4) * 4);
    const buffer = backend.allocate(bytes, `${kernel.name} ${name}`);
    if (name === "end") backend.upload({ buffer, offset: 0, bytes }, new Uint32Array(length).fill(length));
    return buffer;
  });
  const ranges: Range[] = buffers.map((buffer) => ({ buffer, offset: 0, bytes: buffer.bytes }));
  const list = await backend.prepare(
    Array.from({ length: times }, () => ({ kind: "dispatch" as const, kernel, ranges })),
  );
  return { list, [Symbol.dispose]: () => buffers.forEach((buffer) => backend.release(buffer)) };
}

/** A timing lasts at least so long, so that the wait for the device does not count. */
const shortest = 0.1;

interface Clock {
  readonly backend: Backend;
  readonly repeats: number;
  wait(): Promise<void>;
}

/** Seconds of one submission of a list, the best of several timings. */
async function timeList(list: CommandList, { backend, repeats, wait }: Clock): Promise<number> {
  const time = async (count: number) => {
    const started = performance.now();
    for (let i = 0; i < count; i++) backend.submit(list);
    await wait();
    return secondsSince(started) / count;
  };
  await time(1); // compiled and warm
  const count = Math.max(1, Math.min(10_000, Math.ceil(shortest / await time(1))));
  let best = Infinity;
  for (let i = 0; i < repeats; i++) best = Math.min(best, await time(count));
  return best;
}

async function timeKernel(kernel: Kernel, clock: Clock): Promise<number> {
  using ready = await prepared(kernel, clock.backend, 1);
  return await timeList(ready.list, clock);
}

const productOf = (size: number, type: FloatType): Kernel =>
  matmul({ m: size, n: size, k: size, transposeB: true, types: { a: type, b: type, c: type } });

/** Rates of products and of attention, forward and backward, on operands of a type. */
async function products(type: FloatType, { matmul: size, tokens }: Sizes, clock: Clock) {
  const product = productOf(size, type), shape = { tokens, heads: 12, kvHeads: 12, headDim: 64, type };
  const both = [attentionForward(shape), attentionBackward(shape)];
  let seconds = 0;
  for (const kernel of both) seconds += await timeKernel(kernel, clock);
  return {
    matmul: product.cost.flops / await timeKernel(product, clock),
    attention: both.reduce((sum, { cost }) => sum + cost.flops, 0) / seconds,
  };
}

/** Best of `repeats` seconds of some work of the host. */
async function timeHost(repeats: number, work: () => unknown): Promise<number> {
  let best = Infinity;
  for (let i = 0; i <= repeats; i++) {
    const started = performance.now();
    await work();
    if (i > 0) best = Math.min(best, secondsSince(started));
  }
  return best;
}

/** The ways of bytes between device and shared memory, by the backend that a run uses. */
async function hostRates({ hostBytes }: Sizes, { backend, repeats, wait }: Clock) {
  const buffer = backend.allocate(hostBytes, "bytes that come and go"), shared = new SharedArrayBuffer(hostBytes);
  const range = { buffer, offset: 0, bytes: hostBytes },
    place = new Uint8Array(shared),
    other = new Uint8Array(hostBytes);
  try {
    const reading = async () => {
      const ticket = backend.readInto([range], [place]);
      await ticket.ready();
      ticket.take();
    };
    await reading(); // a staging buffer of this size is warmed after the first
    await wait();
    return {
      latency: await timeHost(repeats, () => settle(backend.read([{ buffer, offset: 0, bytes: 4 }]))),
      readBack: hostBytes / await timeHost(repeats, reading),
      copy: hostBytes / await timeHost(repeats, () => place.set(other)),
      upload: hostBytes / await timeHost(repeats, async () => {
        backend.upload(range, place);
        await wait();
      }),
    };
  } finally {
    backend.release(buffer);
  }
}

/** Bytes a second of one hop between two processes: the bus bandwidth of their all-reduce. */
async function hopRate({ hostBytes }: Sizes, repeats: number): Promise<number> {
  const rates: number[] = [];
  await benchComm({
    ranks: [2],
    largest: hostBytes,
    repeats,
    report: ({ figure, value }) => figure === "all_reduce" && rates.push(value as number * 1e9),
  });
  return rates.at(-1)!;
}

const childSeconds = 1;

/** One of two processes that take turns on the device: computes for a second when told to, and says how much it did. */
export async function deviceChild(backend: Backend): Promise<void> {
  using barrier = openBarrier(backend);
  const { matmul: size } = isSoftware(backend) ? small : large;
  using ready = await prepared(productOf(size, "f32"), backend, 1);
  backend.submit(ready.list);
  await barrier.wait();
  const told = Deno.stdin.readable.getReader();
  console.log("ready");
  for (;;) {
    const { done } = await told.read();
    if (done) return;
    const started = performance.now();
    let count = 0;
    for (; secondsSince(started) < childSeconds; count++) {
      backend.submit(ready.list);
      await barrier.wait();
    }
    console.log(String(count / secondsSince(started)));
  }
}

/**
 * How much longer work takes where two processes take turns, beside what the other one does.
 *
 * @param words the command line of this benchmark, for its children
 */
async function switchingCost(words: readonly string[]): Promise<number> {
  const { command, args, env } = selfCommand(["bench", "device", "--child", ...words], {
    read: true,
    env: true,
    sys: ["systemMemoryInfo", "hostname"],
  });
  const children = [0, 1].map(() => {
    const child = new Deno.Command(command, { args, env, stdin: "piped", stdout: "piped", stderr: "inherit" }).spawn();
    const lines = child.stdout.pipeThrough(new TextDecoderStream()).getReader(), writer = child.stdin.getWriter();
    return {
      child,
      line: async () => {
        const { value } = await lines.read();
        if (value === undefined) throw new Error("Cannot measure processes that take turns: one of them ended");
        return value;
      },
      lines,
      go: () => writer.write(new TextEncoder().encode("\n")),
      end: () => writer.close(),
    };
  });
  try {
    for (const { line } of children) await line();
    const [first, second] = children as [typeof children[0], typeof children[0]];
    await first.go();
    const alone = Number(await first.line());
    const rates = await Promise.all([first, second].map(async ({ go, line }) => {
      await go();
      return Number(await line());
    }));
    return Math.max(0, alone / rates.reduce((sum, rate) => sum + rate, 0) - 1);
  } finally {
    for (const { child, lines, end } of children) {
      await end().catch(() => {});
      await lines.cancel();
      await child.status;
    }
  }
}

/**
 * @param memory what a run may take of the device, which WebGPU does not tell
 * @param words the command line, for the processes that take turns
 * @param told before each figure, which takes seconds
 */
export async function benchDevice(
  backend: Backend,
  { memory, repeats, words, told = () => {} }: {
    readonly memory: number;
    readonly repeats: number;
    readonly words: readonly string[];
    readonly told?: (what: string) => void;
  },
): Promise<DeviceModel> {
  const sizes = isSoftware(backend) ? small : large, { traits } = backend;
  using barrier = openBarrier(backend);
  const clock: Clock = { backend, repeats, wait: barrier.wait };

  told("matrix products and attention");
  const plain = await products("f32", sizes, clock);
  const units = traits.features.matrixUnits
    ? { float16: await products("f16", sizes, clock), bfloat16: await products("bf16", sizes, clock) }
    : { float16: plain, bfloat16: plain };
  told("memory, dispatches and read-backs");
  const moving = scale({ length: sizes.moved / 4, factor: 2 });
  const bandwidth = moving.cost.bytes / await timeKernel(moving, clock);
  const many = 500, tiny = await prepared(scale({ length: 64, factor: 2 }), backend, many);
  let dispatch: number;
  try {
    dispatch = await timeList(tiny.list, clock) / many;
  } finally {
    tiny[Symbol.dispose]();
  }
  const host = await hostRates(sizes, clock);
  told("a hop between two processes");
  const hop = await hopRate(sizes, repeats);
  told("two processes that take turns on the device");
  const switching = await switchingCost(words);

  const rounded = <T extends Record<string, number>>(figures: T): T =>
    Object.fromEntries(Object.entries(figures).map(([name, value]) => [name, round(value)])) as T;
  return {
    description: traits.description,
    memory,
    limits: {
      maxBufferSize: traits.limits.maxBufferSize,
      maxStorageBufferBindingSize: traits.limits.maxStorageBufferBindingSize,
    },
    ...rounded({ ...plain, bandwidth, dispatch, switching }),
    units: { float16: rounded(units.float16), bfloat16: rounded(units.bfloat16) },
    host: rounded({ ...host, hop }),
    source: `measured by troupe bench device, provider ${traits.provider}, products of ${sizes.matmul}^3`,
  };
}
