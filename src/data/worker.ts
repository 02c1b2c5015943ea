/**
 * Workers of this room: they encode text, and read Parquet, where a damaged file must not keep the whole program. Each
 * answers one request after the other. They are those of `node:worker_threads`, whose end is always told.
 */
import { type Transferable, Worker } from "node:worker_threads";

/** What a worker is for, and what it is told at its start. */
export type DataTask =
  | { readonly dataTask: "encode"; readonly options: import("./encode_chunks.ts").EncodeOptions }
  | { readonly dataTask: "parquet" };

export interface DataWorker {
  /** Sends one message; `handle` gets all that the worker sends. */
  send(message: unknown, transfer?: readonly Transferable[]): void;
  /** Ends it by force, and waits until it is gone. */
  close(): Promise<void>;
}

export interface DataWorkerOptions {
  readonly onMessage: (message: unknown) => void;
  /** The worker crashed or left. Not called after `close`. */
  readonly onEnd: (error: Error) => void;
  /** It does not keep the program alive. @default {false} */
  readonly background?: boolean;
  /** Bound of the worker's JavaScript heap; an excess ends the worker, not the program. @default {4096} */
  readonly maxHeapMb?: number;
}

const program = import.meta.url.endsWith("/src/data/worker.ts")
  ? new URL("./worker_main.ts", import.meta.url)
  : new URL(import.meta.url); // a bundle: its main module hands `workerData` to `runDataWorker`

/** Starts a worker. */
export function openDataWorker(task: DataTask, options: DataWorkerOptions): DataWorker {
  const { onMessage, onEnd, background = false, maxHeapMb = 4096 } = options;
  const worker = new Worker(program, {
    workerData: task,
    resourceLimits: { maxOldGenerationSizeMb: maxHeapMb },
  });
  if (background) worker.unref();
  let closed = false, failure: Error | undefined;
  const gone = new Promise<void>((resolve) => {
    worker.on("exit", (code) => {
      if (!closed) onEnd(failure ?? new Error(`the worker left with code ${code}`));
      resolve();
    });
  });
  worker.on("message", (message) => closed || onMessage(message));
  worker.on("error", (error) => failure = error as Error);
  return {
    send: (message, transfer = []) => worker.postMessage(message, [...transfer]),
    async close() {
      closed = true;
      worker.terminate();
      await gone;
    },
  };
}

/** Whether a worker was started by `openDataWorker`. */
export const isDataTask = (data: unknown): data is DataTask =>
  typeof data === "object" && data !== null && "dataTask" in data;
