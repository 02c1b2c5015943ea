/** What an actor is: a protocol, a first state, and a handler from state and message to the next state. */
import type { Answer, AnyProtocol, Fields, Message, Private, Request } from "./protocol.ts";
import type { Reason } from "./reason.ts";
import type { AskOptions, Cancel, Ref } from "./ref.ts";
import type { Runtime } from "./runtime.ts";

/** Returned by a handler that is done: the actor ends normally. */
export const stop: unique symbol = Symbol("stop");
export type Stop = typeof stop;

export interface Context<P extends AnyProtocol, I extends Record<string, Fields> = Record<never, never>> {
  readonly self: Ref<P>;
  readonly name: string;
  /** Aborts when the actor is told to stop or its time to do so begins: pass it to whatever may take long. */
  readonly signal: AbortSignal;
  readonly runtime: Runtime;
  /** Puts a message, private ones too, at the end of the own mailbox. */
  sendSelf(message: Private<I> | CommandOf<P>): void;
  /** As `ref.ask`, but gives up when this actor stops. The mailbox waits while the handler does. */
  ask<Q extends AnyProtocol, K extends keyof Q["requests"] & string>(
    ref: Ref<Q>,
    request: Request<Q, K>,
    options?: AskOptions,
  ): Promise<Answer<Q, K>>;
  /** Starts a child, named `<own name>/<name>`. It stops with this actor. Throws when the name is taken. */
  spawn<Q extends AnyProtocol>(name: string, spec: ActorSpec<Q>): Ref<Q>;
  /** Resolves when a child's first state is made; rejects with {@linkcode Ended} when it ended before that. */
  started(child: Ref): Promise<void>;
  /** Stops a child; resolves when it has ended. */
  stop(child: Ref): Promise<void>;
  /** Sends this actor one message when the other ends (at once when it has). */
  watch(ref: Ref, message: (reason: Reason) => Private<I> | CommandOf<P>): Cancel;
  /** Sends this actor the message once, `milliseconds` from now. */
  after(milliseconds: number, message: Private<I> | CommandOf<P>): Cancel;
  /** Sends this actor the message again and again, counted from the last time. */
  every(milliseconds: number, message: Private<I> | CommandOf<P>): Cancel;
  /** Milliseconds, from the runtime's clock. */
  now(): number;
  log(text: string): void;
  /** A reference by full name, resolved at each use: it outlives restarts. */
  lookup<Q extends AnyProtocol>(protocol: Q, name: string): Ref<Q>;
}

type CommandOf<P extends AnyProtocol> = Extract<Message<P>, { kind: keyof P["commands"] & string }>;

export interface ActorDefinition<P extends AnyProtocol, State, I extends Record<string, Fields>> {
  readonly protocol: P;
  /** Messages that only the actor itself and its timers can send. */
  readonly internal?: I;
  /** The state to start from. Called for every start, so that a restart begins afresh. */
  readonly initial: (context: Context<P, I>) => State | Promise<State>;
  /**
   * Handles one message at a time. A throw is a crash: the supervisor decides what follows. A request is answered through
   * `message.reply`, now or later; one left unanswered rejects when the actor ends.
   */
  readonly handle: (
    state: State,
    message: Message<P> | Private<I>,
    context: Context<P, I>,
  ) => State | Stop | Promise<State | Stop>;
  /** Gives back what the state holds, after the children have stopped, however the actor ended. */
  readonly stopped?: (state: State, reason: Reason) => void | Promise<void>;
  /** How long a stop may take before the actor is abandoned. @default {5000} */
  readonly stopTimeoutMs?: number;
}

/** An actor ready to be started, any number of times. */
export interface ActorSpec<P extends AnyProtocol = AnyProtocol> {
  readonly protocol: P;
  readonly behavior: Behavior;
}

// deno-lint-ignore no-explicit-any -- the types were checked by actor()
export type AnyDefinition = ActorDefinition<AnyProtocol, any, any>;

/** A definition with its types forgotten, and what only the runtime's own actors use. */
export interface Behavior {
  readonly definition: AnyDefinition;
  /** The handler gets every message unchecked, as {@linkcode Forwarded}. */
  readonly forwards?: boolean;
  /** Names of children, in the order whose reverse they stop in. Default: as spawned. */
  readonly order?: readonly string[];
}

/**
 * Defines an actor. A function that returns `actor({...})` makes one with parameters.
 *
 * @throws {TypeError} when a private message has the name of a public one.
 */
export function actor<P extends AnyProtocol, State, I extends Record<string, Fields> = Record<never, never>>(
  definition: ActorDefinition<P, State, I>,
): ActorSpec<P> {
  const { protocol, internal = {} } = definition;
  for (const kind of Object.keys(internal)) {
    if (Object.hasOwn(protocol.commands, kind) || Object.hasOwn(protocol.requests, kind)) {
      throw new TypeError(`Cannot define actor: private message "${kind}" is also in its protocol`);
    }
  }
  return { protocol, behavior: { definition: definition as unknown as AnyDefinition } };
}
