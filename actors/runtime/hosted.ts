/** Actors that run in a process or worker of their own, and look from here like any other. */
import { type ActorSpec, type AnyDefinition, stop } from "./actor.ts";
import type { Forwarded } from "./cell.ts";
import {
  type Host,
  parentChannel,
  type ProcessOptions,
  spawnProcess,
  spawnWorker,
  within,
  type WorkerOptions,
} from "./host.ts";
import type { AnyProtocol } from "./protocol.ts";
import { Ended, type Reason, reasonSchema } from "./reason.ts";
import { type Ref, targetOf } from "./ref.ts";
import { type Remote, remote, type RemoteOptions } from "./remote.ts";
import { createRuntime, type Runtime, type RuntimeOptions } from "./runtime.ts";

export interface HostedOptions extends Pick<RemoteOptions, "exports" | "heartbeat"> {
  /** How long the other side may take to join. @default {30000} */
  readonly startTimeoutMs?: number;
  /** How long the actor may take to stop before its host is closed, and then to leave before it is killed. @default {5000} */
  readonly graceMs?: number;
}

/**
 * An actor in a host of its own, which runs {@linkcode serve}. Each start opens a fresh host; the actor's end ends the host
 * and the other way round, with the reason (a signal, an exit code, a crash). Messages are checked over there.
 */
export function hosted<P extends AnyProtocol>(
  protocol: P,
  open: () => Host,
  { exports = {}, heartbeat, startTimeoutMs = 30_000, graceMs = 5000 }: HostedOptions = {},
): ActorSpec<P> {
  type State = { host: Host; link: Remote; main: Ref };
  const definition: AnyDefinition = {
    protocol,
    internal: { ended: { reason: reasonSchema } },
    stopTimeoutMs: Infinity, // bounded below
    async initial(context): Promise<State> {
      const host = open();
      const name = context.name;
      const link = remote(context.runtime, host.channel, { exports, name, ...(heartbeat ? { heartbeat } : {}) });
      const told = new Promise<"told">((resolve) => context.signal.addEventListener("abort", () => resolve("told")));
      const joined = await within(startTimeoutMs, Promise.race([link.ready.then(() => "joined", () => "gone"), told]));
      if (joined !== "joined") {
        const late = { kind: "lost", detail: `did not join within ${startTimeoutMs} ms` } as const;
        const reason = joined === "gone" ? await link.closed : late;
        link.close();
        host.kill();
        await host.ended;
        throw new Ended(reason);
      }
      const main = link.ref(protocol, "main");
      context.watch(main, (reason) => ({ kind: "ended", reason }));
      return { host, link, main };
    },
    handle(state: State, message) {
      const received = message as unknown as Forwarded | { kind: "ended"; reason: Reason };
      if (received.kind === "ended") {
        if (received.reason.kind === "stopped") return stop;
        throw new Ended(received.reason);
      }
      targetOf(state.main).deliver(received.message, received.answerer);
      return state;
    },
    async stopped({ host, link, main }: State) {
      const over = new Promise((resolve) => targetOf(main).watch(resolve));
      link.stop("main");
      await within(graceMs, over);
      link.close();
      await host.ended;
    },
  };
  return { protocol, behavior: { definition, forwards: true } };
}

/** An actor in a process of its own. */
export function inProcess<P extends AnyProtocol>(
  protocol: P,
  options: ProcessOptions & HostedOptions,
): ActorSpec<P> {
  return hosted(protocol, () => spawnProcess(options), options);
}

/** An actor in a worker of its own. */
export function inWorker<P extends AnyProtocol>(protocol: P, options: WorkerOptions & HostedOptions): ActorSpec<P> {
  return hosted(protocol, () => spawnWorker(options), options);
}

/**
 * The main program of a hosted process or worker: runs the actor for the parent, then exits, with code 0 when the actor
 * stopped and 1 when it crashed or the parent is gone. A function gets the way to actors that the parent exports.
 *
 * ```ts ignore
 * await serve((parent) => rank(parent.ref(monitorProtocol, "monitor")));
 * ```
 */
export async function serve(
  main: ActorSpec | ((parent: Remote, runtime: Runtime) => ActorSpec),
  options: RuntimeOptions = {},
): Promise<never> {
  const runtime = createRuntime(options);
  const parent = remote(runtime, parentChannel(), { name: "parent", stoppable: true });
  const ref = runtime.spawn("main", typeof main === "function" ? main(parent, runtime) : main);
  parent.export("main", ref);
  const reason = await Promise.race([runtime.terminated(ref), parent.closed.then(() => undefined)]);
  if (reason !== undefined) await within(5000, parent.closed); // the parent hears of it and hangs up
  await within(5000, runtime.stop());
  Deno.exit(reason?.kind === "stopped" ? 0 : 1);
}
