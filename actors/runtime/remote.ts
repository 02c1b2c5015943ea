/** Joins two runtimes over a channel: actors by name, references inside messages, asks, watches. */
import { z } from "zod";
import { type Channel, lost } from "./channel.ts";
import { rebuild } from "./json.ts";
import { type AnyProtocol, describeIssues, kindOf } from "./protocol.ts";
import { AskError, describeReason, Ended, type Reason, reasonSchema } from "./reason.ts";
import { type Answerer, type AskOptions, isRef, makeRef, type Ref, type Target, targetOf } from "./ref.ts";
import type { Runtime } from "./runtime.ts";

export interface RemoteOptions {
  /** Actors that the other side may reach, by name. A reference from `lookup` survives the actor's restarts. */
  readonly exports?: Readonly<Record<string, Ref>>;
  /** Whether the other side may stop an exported actor, as a parent does. @default {false} */
  readonly stoppable?: boolean;
  /** Closes the channel when nothing at all arrives for `timeoutMs`. Asks for a sign of life every `everyMs`. */
  readonly heartbeat?: { readonly everyMs: number; readonly timeoutMs: number };
  /** Stands before the names of the other side's actors. @default {"remote"} */
  readonly name?: string;
}

export interface Remote {
  /** Resolves when the other side has joined; rejects with {@linkcode Ended} when the channel ends before. */
  readonly ready: Promise<void>;
  readonly closed: Promise<Reason>;
  /** A reference to an actor that the other side exports. Whether it exists shows at the first message. */
  ref<P extends AnyProtocol>(protocol: P, name: string): Ref<P>;
  /** Lets the other side reach one more actor. */
  export(name: string, ref: Ref): void;
  /** Stops an exported actor of the other side, which must have said `stoppable`. */
  stop(name: string): void;
  close(): void;
}

/** An actor's exported name, or the number it got when a reference to it travelled. */
const address = z.union([z.string(), z.int()]);
const marker = z.strictObject({ $ref: z.strictObject({ to: address, name: z.string(), yours: z.boolean() }) });
const wire = z.discriminatedUnion("type", [
  z.object({ type: z.literal("hello"), version: z.literal(1) }),
  z.object({ type: z.literal("send"), to: address, message: z.unknown() }),
  z.object({ type: z.literal("ask"), to: address, id: z.int(), message: z.unknown() }),
  z.object({ type: z.literal("reply"), id: z.int(), value: z.unknown() }),
  z.object({
    type: z.literal("failed"),
    id: z.int(),
    failure: z.enum(["timeout", "stopped", "invalid", "refused", "lost"]),
    text: z.string(),
    reason: z.string().optional(),
    /** How the actor ended, where that was the failure. */
    ended: reasonSchema.optional(),
  }),
  z.object({ type: z.literal("watch"), to: address, id: z.int() }),
  z.object({ type: z.literal("unwatch"), id: z.int() }),
  z.object({ type: z.literal("down"), id: z.int(), reason: reasonSchema }),
  z.object({ type: z.literal("stop"), to: z.string() }),
  z.object({ type: z.literal("ping") }),
  z.object({ type: z.literal("pong") }),
]);
type Wire = z.input<typeof wire>;

/** Joins this runtime to the one at the channel's other end, which does the same. Ends with the runtime. */
export function remote(runtime: Runtime, channel: Channel, options: RemoteOptions = {}): Remote {
  const { stoppable = false, heartbeat, name: label = "remote" } = options;
  const exports = new Map(Object.entries(options.exports ?? {}));
  const local = new Map<string | number, Target>();
  const numbers = new Map<Target, number>();
  /** Where the other side's actors live, so that a reference sent home arrives as the actor itself. */
  const addresses = new WeakMap<Target, string | number>();
  const asks = new Map<number, Answerer>();
  const watches = new Map<number, (reason: Reason) => void>();
  const watchedFromThere = new Map<number, () => void>();
  const ready = Promise.withResolvers<void>();
  ready.promise.catch(() => {});
  let ended: Reason | undefined;
  let nextId = 0;
  let lastHeard = runtime.now();
  for (const [name, ref] of exports) local.set(name, targetOf(ref));

  const transmit = (message: Wire) => channel.send(message);

  function withMarkers(message: unknown): unknown {
    return rebuild(message, (item) => {
      if (!isRef(item)) return undefined;
      const target = targetOf(item);
      const home = addresses.get(target);
      if (home !== undefined) return { value: { $ref: { to: home, name: item.name, yours: true } } };
      let number = numbers.get(target);
      if (number === undefined) {
        number = numbers.size;
        numbers.set(target, number);
        local.set(number, target);
      }
      return { value: { $ref: { to: number, name: item.name, yours: false } } };
    });
  }

  function withRefs(message: unknown): unknown {
    return rebuild(message, (item) => {
      if (typeof item !== "object" || item === null || !Object.hasOwn(item, "$ref")) return undefined;
      const { $ref: { to, name, yours } } = marker.parse(item);
      return { value: makeRef(yours ? findLocal(to) : remoteTarget(to, `${label}/${name}`), runtime.ask) };
    });
  }

  const findLocal = (to: string | number): Target =>
    local.get(to) ?? targetOf(runtime.lookup({ commands: {}, requests: {} }, `(not exported) ${to}`));

  function remoteTarget(to: string | number, name: string): Target {
    const target: Target = {
      name,
      deliver(message, answerer) {
        if (ended !== undefined) return runtime.undeliverable(name, message, answerer, ended);
        const id = nextId++;
        if (answerer !== undefined) asks.set(id, answerer);
        try {
          const marked = withMarkers(message);
          const type = answerer === undefined ? "send" : "ask";
          if (transmit({ type, to, id, message: marked }) || answerer !== undefined) return; // an ask fails with the channel
          runtime.undeliverable(name, message, undefined, lost("the channel is closing"));
        } catch (error) {
          const problem = (error as Error).message;
          if (!asks.delete(id)) return runtime.deadLetter(name, message, problem);
          answerer!.reject(new AskError("invalid", `ask "${kindOf(message)}" to "${name}" failed: ${problem}`));
        }
      },
      watch(listener) {
        if (ended !== undefined) {
          const reason = ended;
          return runtime.soon(() => listener(reason));
        }
        const id = nextId++;
        watches.set(id, listener);
        transmit({ type: "watch", to, id });
        return () => {
          if (watches.delete(id)) transmit({ type: "unwatch", id });
        };
      },
    };
    addresses.set(target, to);
    return target;
  }

  /** Answers an ask of the other side; an answer that cannot travel is a failure that can. */
  function answer(id: number): Answerer {
    return {
      resolve(value) {
        try {
          transmit({ type: "reply", id, value: withMarkers(value) });
        } catch (error) {
          transmit({ type: "failed", id, failure: "invalid", text: `ask failed: ${(error as Error).message}` });
        }
      },
      reject: ({ failure, message, reason, cause }) =>
        transmit({
          type: "failed",
          id,
          failure,
          text: message,
          ...(reason === undefined ? {} : { reason }),
          ...(cause instanceof Ended ? { ended: cause.reason } : {}),
        }),
    };
  }

  function handle(message: z.output<typeof wire>): void {
    switch (message.type) {
      case "hello":
        return ready.resolve();
      case "send":
        return findLocal(message.to).deliver(withRefs(message.message));
      case "ask":
        return findLocal(message.to).deliver(withRefs(message.message), answer(message.id));
      case "reply":
      case "failed": {
        const asker = asks.get(message.id);
        asks.delete(message.id);
        if (message.type === "reply") asker?.resolve(withRefs(message.value));
        else {
          const { failure, text, reason, ended } = message;
          asker?.reject(new AskError(failure, text, reason, ended && { cause: new Ended(ended) }));
        }
        return;
      }
      case "watch": {
        const { id } = message;
        const cancel = findLocal(message.to).watch((reason) => {
          watchedFromThere.delete(id);
          transmit({ type: "down", id, reason });
        });
        watchedFromThere.set(id, cancel);
        return;
      }
      case "unwatch":
        watchedFromThere.get(message.id)?.();
        watchedFromThere.delete(message.id);
        return;
      case "down": {
        const listener = watches.get(message.id);
        watches.delete(message.id);
        return listener?.(message.reason);
      }
      case "stop": {
        const ref = exports.get(message.to);
        if (stoppable && ref !== undefined) runtime.stopActor(ref).catch((error) => runtime.log(label, error.message));
        else runtime.log(label, `the other side may not stop "${message.to}"`);
        return;
      }
      case "ping":
        transmit({ type: "pong" });
        return;
      case "pong":
        return;
    }
  }

  channel.receive((data) => {
    lastHeard = runtime.now();
    const parsed = wire.safeParse(data);
    if (!parsed.success) return channel.close(lost(`bad message: ${describeIssues(parsed.error)}`));
    try {
      handle(parsed.data);
    } catch (error) {
      // Local actors never throw here: what does is a message that makes no sense.
      channel.close(lost(`bad message: ${(error as Error).message}`));
    }
  });

  let cancelBeat = () => {};
  if (heartbeat !== undefined) {
    const { everyMs, timeoutMs } = heartbeat;
    if (!(everyMs > 0 && timeoutMs > everyMs)) {
      throw new RangeError(`Cannot keep heartbeat: timeoutMs must exceed everyMs: ${timeoutMs} and ${everyMs} do not`);
    }
    const beat = () => {
      const silentMs = runtime.now() - lastHeard;
      if (silentMs >= timeoutMs) return channel.close(lost(`no sign of life for ${Math.round(silentMs)} ms`));
      transmit({ type: "ping" });
      cancelBeat = runtime.scheduler.clock.after(everyMs, beat, true);
    };
    beat();
  }

  const forget = runtime.onStop(async () => {
    channel.close();
    await closed;
  });
  const closed = channel.closed.then((reason) => {
    ended = reason;
    cancelBeat();
    forget();
    for (const cancel of watchedFromThere.values()) cancel();
    ready.reject(new Ended(reason));
    for (const asker of asks.values()) {
      const text = `ask over "${label}" failed: ${describeReason(reason)}`;
      asker.reject(new AskError("lost", text, undefined, { cause: new Ended(reason) }));
    }
    asks.clear();
    for (const listener of watches.values()) listener(reason);
    watches.clear();
    return reason;
  });
  transmit({ type: "hello", version: 1 });

  return {
    ready: ready.promise,
    closed,
    ref<P extends AnyProtocol>(protocol: P, name: string): Ref<P> {
      const target = remoteTarget(name, `${label}/${name}`);
      const checked = async (request: unknown, options?: AskOptions) => {
        const value = await runtime.ask(target, request, options);
        const parsed = protocol.requests[kindOf(request)].reply.safeParse(value);
        if (parsed.success) return parsed.data;
        const problem = describeIssues(parsed.error);
        throw new AskError("invalid", `ask "${kindOf(request)}" to "${target.name}" got a malformed reply: ${problem}`);
      };
      return makeRef<P>(target, (_, request, options) => {
        const answer = checked(request, options);
        answer.catch(() => {}); // as for every ask
        return answer;
      });
    },
    export(name, ref) {
      exports.set(name, ref);
      local.set(name, targetOf(ref));
    },
    stop: (name) => void transmit({ type: "stop", to: name }),
    close: () => channel.close(),
  };
}
