/**
 * Actors: typed protocols, mailboxes, supervision as data, and references that are the same in this thread, in a worker
 * and in a process on another host. After Erlang/OTP, gleam_otp and Pekko typed.
 *
 * @example
 * ```ts
 * import { actor, createRuntime, protocol } from "./mod.ts";
 * import { z } from "zod";
 *
 * const counterProtocol = protocol({
 *   commands: { add: { amount: z.number() } },
 *   requests: { read: { ask: {}, reply: z.number() } },
 * });
 * const counter = (from: number) =>
 *   actor({
 *     protocol: counterProtocol,
 *     initial: () => from,
 *     handle(count, message) {
 *       if (message.kind === "add") return count + message.amount;
 *       message.reply(count);
 *       return count;
 *     },
 *   });
 *
 * const runtime = createRuntime();
 * const ref = runtime.spawn("counter", counter(40));
 * ref.send({ kind: "add", amount: 2 });
 * console.assert(await ref.ask({ kind: "read" }) === 42);
 * await runtime.stop();
 * ```
 *
 * @module
 */
export { actor, type ActorSpec, type Context, stop } from "./actor.ts";
export { type Channel, channelPair, lost, makeChannel, streamChannel, type StreamOptions } from "./channel.ts";
export { testClock } from "./clock.ts";
export { type Host, type ProcessOptions, spawnProcess, spawnWorker } from "./host.ts";
export { hosted, inProcess, inWorker, serve } from "./hosted.ts";
export { type AnyProtocol, type Message, protocol, type Reply } from "./protocol.ts";
export { AskError, describeReason, Ended, plainReason, type Reason, reasonSchema } from "./reason.ts";
export { type Ref, refTo } from "./ref.ts";
export { type Remote, remote, type RemoteOptions } from "./remote.ts";
export { createRuntime, type DeadLetter, type Runtime, testRuntime } from "./runtime.ts";
export { type Child, describeTree, supervise, type SupervisorSpec } from "./supervise.ts";
