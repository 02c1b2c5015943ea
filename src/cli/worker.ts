/** What a worker of this program runs: one actor, named by the data the worker was started with. */
import { communicator } from "../../actors/communicator.ts";
import { dataLoader, type DataLoaderOptions } from "../../actors/data_loader.ts";
import { serve } from "../../actors/runtime/mod.ts";
import { type DataTask, isDataTask } from "../data/worker.ts";
import { runDataWorker } from "../data/worker_main.ts";

export type WorkerTask =
  | { readonly actor: "data_loader"; readonly options: DataLoaderOptions }
  | { readonly actor: "communicator" };

export async function runWorker(task: WorkerTask | DataTask): Promise<void> {
  if (isDataTask(task)) return runDataWorker(task);
  switch (task.actor) {
    case "data_loader":
      return await serve(dataLoader(task.options));
    case "communicator":
      return await serve(communicator({ kill: () => Deno.kill(Deno.pid, "SIGKILL") }));
  }
}
