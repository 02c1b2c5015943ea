/** The rank's process, started by `train`: the rank in the main thread, its loader and communicator in workers. */
import { communicatorProtocol, type Meeting, orphaned } from "../../actors/communicator.ts";
import { dataLoaderProtocol } from "../../actors/data_loader.ts";
import { Progress } from "../../actors/progress.ts";
import { rank as rankActor } from "../../actors/rank.ts";
import {
  type AskError,
  Ended,
  inWorker,
  plainReason,
  type Ref,
  type Runtime,
  serve,
} from "../../actors/runtime/mod.ts";
import { openBackend } from "../backend/open.ts";
import { callingCommunicator } from "../comm/collectives/calls.ts";
import { FlightRecorder } from "../observe/flight_recorder.ts";
import { CommunicationError } from "../comm/transport/link.ts";
import { deviceVariable, profileVariable, rankVariables, socketVariable } from "./rank_variables.ts";
import { entryUrl } from "./self.ts";
import type { Verb } from "./verb.ts";
import type { WorkerTask } from "./worker.ts";

/** What workers may take to start and to join the root, on a machine with too much to do. */
const patienceMs = 120_000;

/** Joins the root through a communicator in a worker; when the root is gone, this process leaves. */
export async function joinRoot(
  runtime: Runtime,
  progress: Progress,
  recorder = new FlightRecorder(),
): Promise<Ref<typeof communicatorProtocol>> {
  const { hostname, port } = parseAddress(Deno.env.get(rankVariables.control)!);
  const token = Deno.env.get(rankVariables.token)!;
  const task: WorkerTask = { actor: "communicator" };
  const worker = inWorker(communicatorProtocol, { url: entryUrl, data: task, startTimeoutMs: patienceMs });
  const ref = runtime.spawn("communicator", worker);
  const [rank, attempt] = [Number(Deno.env.get(rankVariables.rank)), Number(Deno.env.get(rankVariables.attempt))];
  const memory = { progress: progress.memory, recorder: recorder.memory };
  await ref.ask({ kind: "join", hostname, port, token, rank, attempt, ...memory }, { timeoutMs: patienceMs });
  const leave = (why: string, code: number) => {
    console.error(`rank: ${why}; leaving`);
    Deno.exit(code);
  };
  ref.ask({ kind: "lost" }, { timeoutMs: Infinity }).then(
    (why) => leave(why, orphaned),
    (error: AskError) => {
      const { failure, cause } = error, reason = cause instanceof Ended ? cause.reason : undefined;
      // A runtime that stops in good order takes the communicator with it.
      if (reason ? reason.kind === "stopped" : failure === "stopped") return;
      leave(plainReason(error, "its communicator"), 1);
    },
  );
  return ref;
}

/** Meets the other ranks through the communicator, which from then on carries out what this thread asks for. */
export async function meet(communicator: Ref<typeof communicatorProtocol>, meeting: Meeting) {
  const failed = (error: unknown): never => {
    throw new CommunicationError(plainReason(error), { cause: error });
  };
  const address = Deno.env.get(rankVariables.address)!;
  const socket = Deno.env.get(socketVariable), device = Deno.env.get(deviceVariable);
  const place = { address, ...(socket === undefined ? {} : { socket }), ...(device === undefined ? {} : { device }) };
  const { sharing } = await communicator.ask({ kind: "meet", meeting, ...place }, { timeoutMs: Infinity }).catch(
    failed,
  );
  const calling = callingCommunicator(
    Number(Deno.env.get(rankVariables.rank)),
    (call) => communicator.ask({ kind: "collective", call }, { timeoutMs: Infinity }).catch(failed),
  );
  return { ...calling, sharing };
}

/** `host:port`, an IPv6 address in brackets. */
function parseAddress(text: string): { hostname: string; port: number } {
  const [, hostname, port] = text.match(/^\[?(.*?)\]?:(\d+)$/) ?? [];
  if (hostname === undefined) throw new RangeError(`Cannot read the address ${text}: host:port would work`);
  return { hostname, port: Number(port) };
}

export const rank: Verb = {
  summary: "one rank of a run (started by train)",
  async run() {
    if (Object.values(rankVariables).some((name) => !Deno.env.has(name))) {
      console.error("troupe rank: this verb is for `troupe train` to start");
      return 2;
    }
    // A signal to the whole process group, such as Ctrl-C; what follows is the root's to say.
    for (const signal of ["SIGINT", "SIGTERM"] as const) Deno.addSignalListener(signal, () => {});
    const progress = new Progress(), recorder = new FlightRecorder();
    // How this one ended is the root's to say.
    const quiet = Deno.env.has("TROUPE_DEBUG") ? {} : { log: () => {}, onDeadLetter: () => {} };
    return await serve((_parent, runtime) => {
      const joined = joinRoot(runtime, progress, recorder);
      joined.catch((error) => {
        if ((error as AskError).failure === "stopped") return; // before it had joined
        console.error(`rank: ${error.message}`);
        Deno.exit(1);
      });
      return rankActor({
        // Nothing is begun that could keep this thread before the communicator can tell when the root is gone.
        backend: async (name, options) => (await Promise.all([openBackend(name, options), joined]))[0],
        loader: (options) => {
          const task: WorkerTask = { actor: "data_loader", options };
          return inWorker(dataLoaderProtocol, { url: entryUrl, data: task, startTimeoutMs: patienceMs });
        },
        meet: async (meeting) => await meet(await joined, meeting),
        progress,
        record: (text) => recorder.note(text),
        recorded: (cursor) => recorder.since(cursor),
        profile: Deno.env.has(profileVariable),
      });
    }, quiet);
  },
};
