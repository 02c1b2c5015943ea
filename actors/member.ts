/** A member of a run on several hosts: joins the root, and starts there the ranks that the root asks for (hosts.ts). */
import type { z } from "zod";
import { closeQuietly } from "../src/comm/handshake.ts";
import { afterPatience } from "../src/comm/patience.ts";
import type { FrameStream } from "../src/comm/transport/frame_stream.ts";
import { dial, hear } from "../src/comm/transport/gate.ts";
import { decode, encode, type fromMember, fromRoot, type RankStart, silentMs, speaker } from "./hosts_protocol.ts";
import type { Host } from "./runtime/mod.ts";

/** Exit code of a member that was told twice to end: what shells give to one that SIGINT ended. */
const leftAtOnce = 130;

export interface MemberOptions {
  readonly root: { readonly hostname: string; readonly port: number };
  readonly token: string;
  readonly encrypt: boolean;
  readonly name: string;
  readonly nproc: number;
  readonly firstRank?: number;
  readonly localRank?: number;
  readonly version: string;
  /** The record of a run of so many ranks, as text. */
  readonly record: (world: number) => string;
  /** Starts a rank here. */
  readonly start: (start: RankStart, address: string) => Host;
  readonly onNotice: (text: string) => void;
  /** How long to try, as the root may not be there yet. */
  readonly timeoutMs: number;
  /** Aborted when someone asks this host to end: the root is told, and the run saves and stops. */
  readonly signal: AbortSignal;
  /** Aborted to leave at once. */
  readonly leave: AbortSignal;
}

/**
 * A member's part: joins the root and does what it asks for, to the end of the run.
 *
 * @returns the exit code and last words that the root gives
 * @throws when the root cannot be reached, refuses, or is gone
 */
export async function joinHosts(options: MemberOptions): Promise<{ code: number; text: string }> {
  const { root, token, encrypt, name, nproc, firstRank, localRank, version, record, start, onNotice, signal } = options;
  const at = `${root.hostname}:${root.port}`, deadline = performance.now() + options.timeoutMs;
  let address = "", stream: FrameStream;
  for (let told = false;;) {
    try {
      const timeoutMs = Math.min(10_000, Math.max(1, deadline - performance.now()));
      stream = await dial({ ...root, token, encrypt, timeoutMs, onConnected: (own) => address = own });
      break;
    } catch (error) {
      // Whoever does not know the token never will.
      if ((error as Error).name === "HandshakeError" || performance.now() >= deadline) {
        throw new Error(`Cannot join the root at ${at}: ${(error as Error).message}`, { cause: error });
      }
      if (!told) onNotice(`Waiting for the root at ${at} (${(error as Error).message}) ...`);
      told = true;
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
    if (signal.aborted) return { code: 0, text: "Left before the root was there." };
  }
  const tell = speaker(stream) as (message: z.input<typeof fromMember>) => Promise<void>;
  const hosts = new Map<number, Host>();
  let silent = false, patience: Disposable | undefined;
  const hearRoot = async () => {
    const message = await hear(stream, fromRoot).catch((cause: Error) => {
      // A connection that broke under what was said on it was closed here.
      if (cause instanceof Deno.errors.BadResource || cause instanceof Deno.errors.ConnectionReset) return null;
      throw new Error(`The connection to the root at ${at} broke: ${cause.message}`, { cause });
    });
    if (message?.kind === "refused") throw new Error(`The root at ${at} refuses this host: ${message.reason}`);
    return message;
  };
  const beat = () => {
    patience?.[Symbol.dispose]();
    patience = afterPatience(silentMs, () => {
      silent = true;
      closeQuietly(stream);
    });
  };
  const leave = () => closeQuietly(stream), stop = () => void tell({ kind: "stop" });
  options.leave.addEventListener("abort", leave);
  try {
    await tell({
      kind: "hello",
      name,
      address,
      nproc,
      version,
      ...(firstRank === undefined ? {} : { firstRank }),
      ...(localRank === undefined ? {} : { localRank }),
    });
    const welcome = await hearRoot();
    if (welcome?.kind !== "welcome") throw new Error(`The root at ${at} closed the connection`);
    await tell({ kind: "ready", record: record(welcome.world) });
    const admitted = await hearRoot();
    if (admitted?.kind !== "admitted") throw new Error(`The root at ${at} closed the connection`);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop);
    onNotice(`Joined the root at ${at} with ${nproc === 1 ? "1 rank" : `${nproc} ranks`} of ${welcome.world}`);
    beat();
    for (;;) {
      const message = await hearRoot();
      if (message === null) throw new Error(`The root at ${at} is gone`);
      beat();
      switch (message.kind) {
        case "ping":
          void tell({ kind: "pong" });
          break;
        case "start": {
          const { kind: _, id, ...rank } = message, host = start(rank, address);
          hosts.set(id, host);
          void tell({ kind: "started", id, pid: host.pid ?? 0 });
          host.channel.receive((received) => void tell({ kind: "message", id, text: encode(received) }));
          host.ended.then((reason) => {
            hosts.delete(id);
            void tell({ kind: "ended", id, reason });
          });
          break;
        }
        case "message":
          hosts.get(message.id)?.channel.send(decode(message.text));
          break;
        case "close":
          hosts.get(message.id)?.channel.close();
          break;
        case "kill":
          hosts.get(message.id)?.kill();
          break;
        case "finish":
          return { code: message.code, text: message.text };
      }
    }
  } catch (error) {
    if (options.leave.aborted) return { code: leftAtOnce, text: "Left the run at once, as asked twice." };
    if (silent) throw new Error(`The root at ${at} was not heard of for ${silentMs / 1000} s`, { cause: error });
    throw error;
  } finally {
    options.leave.removeEventListener("abort", leave);
    signal.removeEventListener("abort", stop);
    patience?.[Symbol.dispose]();
    closeQuietly(stream);
    for (const host of hosts.values()) host.kill();
    await Promise.all([...hosts.values()].map(({ ended }) => ended));
  }
}
