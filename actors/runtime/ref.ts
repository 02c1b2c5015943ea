/** References: how one actor knows another, wherever it lives. */
import { z } from "zod";
import type { Answer, AnyProtocol, Command, Request } from "./protocol.ts";
import type { AskError, Reason } from "./reason.ts";

export interface AskOptions {
  /** How long to wait, in milliseconds; `Infinity` waits for the answer or the other's end. @default {5000} */
  readonly timeoutMs?: number;
}

/** The same whether the actor is in this thread, a worker, or a process on another host. */
export interface Ref<P extends AnyProtocol = AnyProtocol> {
  readonly name: string;
  /** Never throws: what cannot be delivered becomes a dead letter. Messages of one sender arrive in order. */
  send(message: Command<P>): void;
  /**
   * Rejects with {@linkcode AskError}. A promise that nobody awaits fails in silence. Inside a handler use `context.ask`,
   * which ends with the actor.
   */
  ask<K extends keyof P["requests"] & string>(request: Request<P, K>, options?: AskOptions): Promise<Answer<P, K>>;
}

/** Where an answer goes. Only the first counts. */
export interface Answerer {
  resolve(value: unknown): void;
  reject(error: AskError): void;
}

export type Cancel = () => void;

/** What a reference points at. Neither call throws. */
export interface Target {
  readonly name: string;
  deliver(message: unknown, answerer?: Answerer): void;
  /** Calls once, never before this returns, with the reason of the end. */
  watch(listener: (reason: Reason) => void): Cancel;
}

const targets = new WeakMap<object, Target>();

export type Ask = (target: Target, request: unknown, options?: AskOptions) => Promise<unknown>;

export function makeRef<P extends AnyProtocol>(target: Target, ask: Ask): Ref<P> {
  const ref: Ref<P> = Object.freeze({
    name: target.name,
    send: (message: unknown) => target.deliver(message),
    ask: (request: unknown, options?: AskOptions) => ask(target, request, options),
  }) as Ref<P>;
  targets.set(ref, target);
  return ref;
}

export function isRef(value: unknown): value is Ref {
  return typeof value === "object" && value !== null && targets.has(value);
}

export function targetOf(ref: Ref): Target {
  const target = targets.get(ref);
  if (target === undefined) throw new TypeError(`Cannot reach actor: ${String(ref)} is not a reference`);
  return target;
}

/** Schema of a reference inside a message. The protocol gives the type only: the receiver of each message checks it. */
export function refTo<P extends AnyProtocol>(protocol: P): z.ZodType<Ref<P>> {
  const names = [...Object.keys(protocol.commands), ...Object.keys(protocol.requests)].join(", ");
  return z.custom<Ref<P>>(isRef, `expected a reference to an actor that takes ${names || "nothing"}`);
}
