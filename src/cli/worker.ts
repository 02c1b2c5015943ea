/** What a worker of this program runs: one actor, named by the data the worker was started with. */
import type { DataLoaderOptions } from "../../actors/data_loader.ts";
import { serve } from "../../actors/runtime/mod.ts";
import { type DataTask, isDataTask } from "../data/worker.ts";
import { runDataWorker } from "../data/worker_main.ts";
import { type DrawTask, isDrawTask } from "../nn/draw.ts";

export type WorkerTask =
  | { readonly actor: "data_loader"; readonly options: DataLoaderOptions }
  | { readonly actor: "communicator" };

/** An actor's modules are loaded for it alone: each takes a twentieth of a second of every rank's start. */
export async function runWorker(task: WorkerTask | DataTask | DrawTask): Promise<void> {
  if (isDataTask(task)) return runDataWorker(task);
  if (isDrawTask(task)) return (await import("../nn/draw_worker.ts")).runDrawWorker(task);
  switch (task.actor) {
    case "data_loader":
      // What it says is for people, who know no actors.
      return await serve((await import("../../actors/data_loader.ts")).dataLoader(task.options), {
        log: (_, text) => console.error(text),
      });
    case "communicator":
      return await serve(
        (await import("../../actors/communicator.ts")).communicator({ kill: () => Deno.kill(Deno.pid, "SIGKILL") }),
      );
  }
}
