/** Initial values of many tensors, drawn by several threads where that is worth starting them. */
import { Worker } from "node:worker_threads";
import type { Initialization } from "../graph/graph.ts";
import { initialTensor } from "./random.ts";

export interface Draw {
  readonly name: string;
  readonly initialization: Initialization;
  /** Elements of the whole tensor. */
  readonly length: number;
}

/** What a worker is told at its start; then it is sent numbers of tensors, one after the other. */
export interface DrawTask {
  readonly draws: readonly Draw[];
  readonly seed: number;
}
/** What it answers. */
export interface Drawn {
  readonly index: number;
  readonly values: Float32Array<ArrayBuffer>;
}

/** Whether a worker was started to draw. */
export const isDrawTask = (data: unknown): data is DrawTask =>
  typeof data === "object" && data !== null && "draws" in data;

/** Numbers that are worth a thread of their own: a tenth of a second. */
const perThread = 1 << 23;
const mostThreads = 8;

const program = import.meta.url.endsWith("/src/nn/draw.ts")
  ? new URL("./draw_worker.ts", import.meta.url)
  : new URL(import.meta.url); // a bundle: its main module hands `workerData` to `runDrawWorker`

/**
 * Draws every tensor as `initialTensor` does and hands each to `take` once, in any order. No more are held at a time than
 * two for each thread.
 *
 * @param options `threads`: beside this one; as many as the tensors are worth and the machine has, if left out
 * @throws what `take` throws, or why a thread ended
 */
export async function drawTensors(draws: readonly Draw[], { seed, take, threads = threadsFor(draws) }: {
  readonly seed: number;
  readonly take: (index: number, values: Float32Array<ArrayBuffer>) => void;
  readonly threads?: number;
}): Promise<void> {
  if (threads < 2) {
    draws.forEach(({ initialization, name, length }, index) =>
      take(index, initialTensor(initialization, { seed, name, length }))
    );
    return;
  }
  // The longest first, so that all threads end about together.
  const order = [...draws.keys()].sort((a, b) => draws[b]!.length - draws[a]!.length);
  const workerData: DrawTask = { draws, seed };
  const workers = Array.from({ length: Math.min(threads, draws.length) }, () => new Worker(program, { workerData }));
  const { promise: done, resolve, reject } = Promise.withResolvers<void>();
  let next = 0, taken = 0;
  const send = (worker: Worker) => next < order.length && worker.postMessage(order[next++]);
  for (const worker of workers) {
    worker.on("error", reject);
    worker.on("exit", (code) => reject(new Error(`A thread that draws initial values left with code ${code}`)));
    worker.on("message", ({ index, values }: Drawn) => {
      send(worker); // it goes on meanwhile
      try {
        take(index, values);
      } catch (error) {
        reject(error);
      }
      if (++taken === draws.length) resolve();
    });
    send(worker);
  }
  try {
    await done;
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}

function threadsFor(draws: readonly Draw[]): number {
  const drawn = draws.reduce(
    (sum, { initialization: { kind }, length }) => sum + (kind === "constant" ? 0 : length),
    0,
  );
  return Math.min(mostThreads, navigator.hardwareConcurrency, Math.floor(drawn / perThread));
}
