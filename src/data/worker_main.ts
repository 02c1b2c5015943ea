/** The main module of this room's workers. */
import { isMainThread, type MessagePort, parentPort, workerData } from "node:worker_threads";
import { type DataTask, isDataTask } from "./worker.ts";

/** In a worker: serves until it is ended. */
export function runDataWorker(task: DataTask): void {
  const port = parentPort!, serving = serve(task, port);
  // At once: what comes before anybody listens is lost.
  port.on("message", async (message) => (await serving)(message));
}

/** Loads what the task needs, and no more. */
async function serve(task: DataTask, port: MessagePort): Promise<(message: unknown) => void> {
  switch (task.dataTask) {
    case "encode":
      return (await import("./encode_chunks.ts")).serveEncoder(port, task.options);
    case "parquet":
      return (await import("./stream/parquet_worker.ts")).serveParquet(port);
  }
}

// In a bundle all files are one, and its main module decides.
if (!isMainThread && import.meta.url.endsWith("/src/data/worker_main.ts") && isDataTask(workerData)) {
  runDataWorker(workerData);
}
