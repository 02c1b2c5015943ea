/**
 * Supervision as data: who is started, in which order, and whose end is the end of all. Siblings are independent: a child
 * that ends is started again, alone, as often as the tolerance allows. After Erlang/OTP's `supervisor`, one for one.
 */
import { z } from "zod";
import { actor, type ActorSpec, type Context, stop } from "./actor.ts";
import { type AnyProtocol, protocol } from "./protocol.ts";
import { describeReason, Ended, type Reason, reasonSchema } from "./reason.ts";

export interface Child {
  readonly name: string;
  /** What to start; a function is called for each start. */
  readonly start: ActorSpec | (() => ActorSpec);
  /** It is never started again: its end ends the supervisor, and by a failure if it was one. @default {false} */
  readonly significant?: boolean;
}

export interface Tolerance {
  /** More restarts than this within the period end the supervisor with an error. @default {3} */
  readonly maxRestarts?: number;
  /** @default {5000} */
  readonly withinMs?: number;
}

/** The tree as a value. */
export interface Supervision extends Required<Tolerance> {
  readonly children: readonly Child[];
}

export interface SupervisorSpec extends ActorSpec {
  readonly supervision: Supervision;
}

const internal = { ended: { name: z.string(), reason: reasonSchema } };
type Own = Context<AnyProtocol, typeof internal>;

/**
 * A supervisor: starts its children in order, each after the one before has made its first state; stops them in reverse.
 * A start that fails counts as a restart. Each restart is logged when the child lives again.
 *
 * @throws {RangeError} when names repeat or the tolerance makes no sense.
 */
export function supervise(children: readonly Child[], tolerance: Tolerance = {}): SupervisorSpec {
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

  /** @param restarts times of those before, to which this one is added */
  async function startAgain(child: Child, reason: Reason, restarts: number[], context: Own): Promise<void> {
    const how = `${child.name} ${describeReason(reason)}`, now = context.now();
    if (child.significant) throw new Error(how);
    restarts.push(now);
    while (restarts[0] <= now - withinMs) restarts.shift();
    if (restarts.length > maxRestarts) {
      throw new Error(`${how}; restarts are used up: at most ${maxRestarts} within ${withinMs / 1000} s`);
    }
    await start(child, restarts, context);
    context.log(`${how}; it was started again`);
  }

  async function start(child: Child, restarts: number[], context: Own): Promise<void> {
    const { name, start } = child, ref = context.spawn(name, typeof start === "function" ? start() : start);
    try {
      await context.started(ref);
    } catch (error) {
      if (!(error instanceof Ended)) throw error;
      return await startAgain(child, error.reason, restarts, context);
    }
    context.watch(ref, (reason) => ({ kind: "ended", name, reason }));
  }

  const { protocol: nothing, behavior } = actor({
    protocol: protocol({}),
    internal,
    stopTimeoutMs: Infinity, // each child has its own limit
    async initial(context): Promise<number[]> {
      const restarts: number[] = [];
      for (const child of children) await start(child, restarts, context);
      return restarts;
    },
    async handle(restarts, { name, reason }, context) {
      const ended = children.find((child) => child.name === name)!;
      if (ended.significant && reason.kind === "stopped") return stop;
      await startAgain(ended, reason, restarts, context);
      return restarts;
    },
  });
  return {
    protocol: nothing,
    behavior: { ...behavior, order: names },
    supervision: { children, maxRestarts, withinMs },
  };
}

/**
 * The tree as text, one line an actor:
 *
 * ```text
 * company: at most 3 restarts in 5 s
 * ├─ monitor
 * └─ supervisor: significant
 * ```
 */
export function describeTree(name: string, spec: ActorSpec): string {
  const lines: string[] = [];
  const describe = (label: string, spec: Child["start"], traits: string[], first: string, rest: string) => {
    const tree = typeof spec === "function" ? undefined : (spec as Partial<SupervisorSpec>).supervision;
    const own = tree === undefined ? [] : [`at most ${tree.maxRestarts} restarts in ${tree.withinMs / 1000} s`];
    const all = [...own, ...traits].join(", ");
    lines.push(`${first}${label}${all === "" ? "" : `: ${all}`}`);
    tree?.children.forEach(({ name, start, significant }, i) => {
      const last = i === tree.children.length - 1;
      const traits = significant ? ["significant"] : [];
      describe(name, start, traits, `${rest}${last ? "└─ " : "├─ "}`, `${rest}${last ? "   " : "│  "}`);
    });
  };
  describe(name, spec, [], "", "");
  return lines.join("\n");
}
