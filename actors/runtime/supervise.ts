/**
 * Supervision as data. The shape states who depends on whom: *one for one*, siblings are independent; *one for all*, they
 * share one fate; *rest for one*, later ones depend on earlier ones. After Erlang/OTP's `supervisor`.
 */
import { z } from "zod";
import { actor, type ActorSpec, type Context, stop } from "./actor.ts";
import { protocol } from "./protocol.ts";
import { describeReason, Ended, type Reason, reasonSchema } from "./reason.ts";
import { isRef, type Ref } from "./ref.ts";

export type Strategy = "oneForOne" | "oneForAll" | "restForOne";
/** `permanent`: always; `transient`: after an abnormal end; `temporary`: never. */
export type Restart = "permanent" | "transient" | "temporary";

export interface Child {
  readonly name: string;
  /** What to start; a function is called for each start. */
  readonly start: ActorSpec | (() => ActorSpec);
  readonly restart: Restart;
  /** Its end (for a transient one: its normal end) ends the supervisor, normally: the unit of work is done. */
  readonly significant: boolean;
}

export interface Tolerance {
  /** More restarts than this within the period end the supervisor with an error. @default {3} */
  readonly maxRestarts?: number;
  /** @default {5000} */
  readonly withinMs?: number;
}

/** The tree as a value. */
export interface Supervision extends Required<Tolerance> {
  readonly strategy: Strategy;
  readonly children: readonly Child[];
}

/** What may be asked of a supervisor. */
export const supervisorProtocol = protocol({
  requests: {
    /** Its children in start order. */
    children: {
      ask: {},
      reply: z.array(z.object({ name: z.string(), alive: z.boolean(), restarts: z.number() })),
    },
  },
});

export interface SupervisorSpec extends ActorSpec<typeof supervisorProtocol> {
  readonly supervision: Supervision;
}

export function child(
  name: string,
  start: Child["start"],
  { restart = "permanent", significant = false }: { restart?: Restart; significant?: boolean } = {},
): Child {
  if (significant && restart === "permanent") {
    throw new TypeError(`Cannot declare child "${name}": a significant child is transient or temporary, not permanent`);
  }
  return { name, start, restart, significant };
}

interface Running {
  readonly ref: Ref;
  readonly unwatch: () => void;
}

interface State {
  /** Children that should be alive; the others ended and are not restarted. */
  readonly wanted: Set<string>;
  readonly running: Map<string, Running>;
  readonly restarts: { name: string; atMs: number }[];
  readonly counts: Map<string, number>;
}

const internal = { childEnded: { name: z.string(), ref: z.custom<Ref>(isRef), reason: reasonSchema } };

/**
 * A supervisor: starts its children in order, each after the one before has made its first state; stops them in reverse;
 * restarts them as the strategy says. A restart that fails counts as one more.
 *
 * @throws {RangeError} when names repeat or the tolerance makes no sense.
 */
export function supervise(strategy: Strategy, children: readonly Child[], tolerance: Tolerance = {}): SupervisorSpec {
  const { maxRestarts = 3, withinMs = 5000 } = tolerance;
  const names = children.map(({ name }) => name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new RangeError(`Cannot supervise: two children are named "${twice}"`);
  if (!Number.isInteger(maxRestarts) || maxRestarts < 0 || !(withinMs > 0)) {
    throw new RangeError(
      `Cannot supervise: maxRestarts is a whole number from 0 and withinMs above 0: ` +
        `current values are maxRestarts=${maxRestarts}, withinMs=${withinMs}`,
    );
  }
  type Own = Context<typeof supervisorProtocol, typeof internal>;

  /** Starts one child; returns why it failed, if it did. */
  async function start({ name, start }: Child, state: State, context: Own): Promise<Reason | undefined> {
    const ref = context.spawn(name, typeof start === "function" ? start() : start);
    try {
      await context.started(ref);
    } catch (error) {
      if (error instanceof Ended) return error.reason;
      throw error;
    }
    const unwatch = context.watch(ref, (reason) => ({ kind: "childEnded", name, ref, reason }));
    state.running.set(name, { ref, unwatch });
  }

  async function stopAll(which: readonly Child[], state: State, context: Own): Promise<void> {
    for (const { name } of which.toReversed()) {
      const running = state.running.get(name);
      if (running === undefined) continue;
      running.unwatch(); // this end is wanted
      await context.stop(running.ref);
      state.running.delete(name);
    }
  }

  /** Counts one restart; throws when it is one too many. */
  function spend({ name }: Child, reason: Reason, state: State, context: Own): void {
    const now = context.now();
    state.restarts.push({ name, atMs: now });
    while (state.restarts[0].atMs <= now - withinMs) state.restarts.shift();
    if (state.restarts.length > maxRestarts) {
      throw new Error(
        `supervisor "${context.name}" gives up: its children ended ${state.restarts.length} times in ${withinMs} ms, ` +
          `at most ${maxRestarts} restarts are allowed; the last was "${name}": ${describeReason(reason)}`,
      );
    }
    state.counts.set(name, (state.counts.get(name) ?? 0) + 1);
    context.log(`restarting "${name}" (${strategy}): ${describeReason(reason)}`);
  }

  /** Takes down those who share the fate of the child that ended, and marks them to be started again. */
  async function takeDown(ended: Child, state: State, context: Own): Promise<void> {
    const from = children.indexOf(ended);
    const affected = { oneForOne: [ended], oneForAll: children, restForOne: children.slice(from) }[strategy];
    await stopAll(affected, state, context);
    for (const { name, restart } of affected) {
      if (restart === "temporary") state.wanted.delete(name);
      else state.wanted.add(name);
    }
  }

  /** Starts, in order, whoever should be alive and is not. */
  async function startMissing(state: State, context: Own): Promise<void> {
    for (let i = 0; i < children.length;) {
      const next = children[i];
      const failure = state.wanted.has(next.name) && !state.running.has(next.name)
        ? await start(next, state, context)
        : undefined;
      if (failure === undefined) i++;
      else if (next.restart === "temporary") state.wanted.delete(next.name);
      else {
        spend(next, failure, state, context);
        await takeDown(next, state, context);
        if (strategy === "oneForAll") i = 0;
      }
    }
  }

  const { protocol, behavior } = actor({
    protocol: supervisorProtocol,
    internal,
    stopTimeoutMs: Infinity, // each child has its own limit
    initial: async (context): Promise<State> => {
      const state: State = { wanted: new Set(names), running: new Map(), restarts: [], counts: new Map() };
      await startMissing(state, context);
      return state;
    },
    handle: async (state, message, context) => {
      if (message.kind === "children") {
        message.reply(names.map((name) => ({
          name,
          alive: state.running.has(name),
          restarts: state.counts.get(name) ?? 0,
        })));
        return state;
      }
      const { name, ref, reason } = message;
      if (state.running.get(name)?.ref !== ref) return state; // of an earlier life
      state.running.delete(name);
      const ended = children.find((child) => child.name === name)!;
      const again = ended.restart === "permanent" || (ended.restart === "transient" && reason.kind !== "stopped");
      if (!again) {
        state.wanted.delete(name);
        return ended.significant ? stop : state;
      }
      spend(ended, reason, state, context);
      await takeDown(ended, state, context);
      await startMissing(state, context);
      return state;
    },
  });
  return {
    protocol,
    behavior: { ...behavior, order: names },
    supervision: { strategy, children, maxRestarts, withinMs },
  };
}

/**
 * The tree as text, one line an actor:
 *
 * ```
 * run: oneForOne, at most 3 restarts in 5000 ms
 * ├─ monitor: permanent
 * └─ ranks: oneForAll, at most 0 restarts in 5000 ms, transient, significant
 *    └─ rank 0: permanent
 * ```
 */
export function describeTree(name: string, spec: ActorSpec): string {
  const lines: string[] = [];
  const describe = (label: string, spec: Child["start"], traits: string[], first: string, rest: string) => {
    const tree = typeof spec === "function" ? undefined : (spec as Partial<SupervisorSpec>).supervision;
    const own = tree === undefined
      ? []
      : [tree.strategy, `at most ${tree.maxRestarts} restarts in ${tree.withinMs} ms`];
    const all = [...own, ...traits].join(", ");
    lines.push(`${first}${label}${all === "" ? "" : `: ${all}`}`);
    tree?.children.forEach(({ name, start, restart, significant }, i) => {
      const last = i === tree.children.length - 1;
      const traits = [restart, ...(significant ? ["significant"] : [])];
      describe(name, start, traits, `${rest}${last ? "└─ " : "├─ "}`, `${rest}${last ? "   " : "│  "}`);
    });
  };
  describe(name, spec, [], "", "");
  return lines.join("\n");
}
