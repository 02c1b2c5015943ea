/** The main module of this room's workers. */
import { isMainThread, parentPort, workerData } from "node:worker_threads";
import { serveEncoder } from "./encode_chunks.ts";
import { serveParquet } from "./stream/parquet_worker.ts";
import { type DataTask, isDataTask } from "./worker.ts";

/** In a worker: serves until it is ended. */
export function runDataWorker(task: DataTask): void {
  switch (task.dataTask) {
    case "encode":
      return serveEncoder(parentPort!, task.options);
    case "parquet":
      return serveParquet(parentPort!);
  }
}

// In a bundle all files are one, and its main module decides.
if (!isMainThread && import.meta.url.endsWith("/src/data/worker_main.ts") && isDataTask(workerData)) {
  runDataWorker(workerData);
}
