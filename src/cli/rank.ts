/** The rank's process, started by `train`: the rank in the main thread, its loader and communicator in workers. */
import { communicatorProtocol } from "../../actors/communicator.ts";
import { dataLoaderProtocol } from "../../actors/data_loader.ts";
import { Progress } from "../../actors/progress.ts";
import { rank as rankActor } from "../../actors/rank.ts";
import { type AskError, inWorker, type Runtime, serve } from "../../actors/runtime/mod.ts";
import { openBackend } from "../backend/open.ts";
import { entryUrl } from "./self.ts";
import type { Verb } from "./verb.ts";
import type { WorkerTask } from "./worker.ts";

/** Where the root listens, and the run's token: by environment, which other users of the machine cannot read. */
export const controlVariables = { address: "TROUPE_CONTROL", token: "TROUPE_TOKEN" } as const;

/** Exit code of a rank whose root is gone. */
const orphaned = 3;

async function joinRoot(runtime: Runtime, progress: Progress): Promise<void> {
  const [hostname, port] = Deno.env.get(controlVariables.address)!.split(":") as [string, string];
  const token = Deno.env.get(controlVariables.token)!;
  const task: WorkerTask = { actor: "communicator" };
  const ref = runtime.spawn("communicator", inWorker(communicatorProtocol, { url: entryUrl, data: task }));
  await ref.ask({ kind: "join", hostname, port: Number(port), token, progress: progress.memory }, {
    timeoutMs: 20_000,
  });
  const leave = (why: string) => {
    console.error(`rank: ${why}; leaving`);
    Deno.exit(orphaned);
  };
  ref.ask({ kind: "lost" }, { timeoutMs: Infinity }).then(
    () => leave("the root is gone"),
    // A runtime that stops in good order takes the communicator with it.
    (error: AskError) => error.failure === "stopped" || leave(`the communicator failed: ${error.message}`),
  );
}

export const rank: Verb = {
  summary: "one rank of a run (started by train)",
  async run() {
    if (!Deno.env.has(controlVariables.address) || !Deno.env.has(controlVariables.token)) {
      console.error("troupe rank: this verb is for `troupe train` to start");
      return 2;
    }
    // A signal to the whole process group, such as Ctrl-C; what follows is the root's to say.
    for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(signal, () => {});
    const progress = new Progress();
    // How this one ended is the root's to say.
    const quiet = Deno.env.has("TROUPE_DEBUG") ? {} : { log: () => {}, onDeadLetter: () => {} };
    return await serve((_parent, runtime) => {
      joinRoot(runtime, progress).catch((error) => {
        if ((error as AskError).failure === "stopped") return; // before it had joined
        console.error(`rank: ${error.message}`);
        Deno.exit(1);
      });
      return rankActor({
        backend: (name) => openBackend(name),
        loader: (options) => {
          const task: WorkerTask = { actor: "data_loader", options };
          return inWorker(dataLoaderProtocol, { url: entryUrl, data: task, startTimeoutMs: 120_000 });
        },
        progress,
      });
    }, quiet);
  },
};
