/** The main module of the threads that draw initial values. */
import { isMainThread, parentPort, workerData } from "node:worker_threads";
import { type Drawn, type DrawTask, isDrawTask } from "./draw.ts";
import { initialTensor } from "./random.ts";

/** In a worker: draws the tensors whose numbers it is sent, until it is ended. */
export function runDrawWorker({ draws, seed }: DrawTask): void {
  const port = parentPort!;
  port.on("message", (index: number) => {
    const { initialization, name, length } = draws[index]!;
    const values = initialTensor(initialization, { seed, name, length });
    const drawn: Drawn = { index, values };
    port.postMessage(drawn, [values.buffer]);
  });
}

// In a bundle all files are one, and its main module decides.
if (!isMainThread && import.meta.url.endsWith("/src/nn/draw_worker.ts") && isDrawTask(workerData)) {
  runDrawWorker(workerData);
}
