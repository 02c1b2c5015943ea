/**
 * Hosts: how the root's supervisor starts ranks on other machines. On each of them a member of the run holds one connection
 * to the root, starts the rank processes that the root asks for, and carries their messages; to the supervisor a rank there
 * is a `Host` like one that runs here. A member that is not heard of is gone, and with it its ranks; a root that is not
 * heard of ends its members, and they their ranks.
 *
 * ```text
 * member → root   hello (name, ranks, program)      root → member   welcome (ranks in all)
 * member → root   ready (record)                     root → member   admitted | refused
 * then: start, message, kill, close, finish one way; started, message, ended, stop the other; ping and pong
 * ```
 */
import { z } from "zod";
import { closeQuietly } from "../src/comm/handshake.ts";
import { afterPatience } from "../src/comm/patience.ts";
import { dial, type Gate, handshakeMs, hear, openGate, say, within } from "../src/comm/transport/gate.ts";
import type { FrameStream } from "../src/comm/transport/frame_stream.ts";
import { decodeJson, encodeJson } from "./runtime/json.ts";
import { type Host, lost, makeChannel, type Reason, reasonSchema } from "./runtime/mod.ts";

/** What a member is told of a rank to start. */
const startSchema = z.object({
  kind: z.literal("start"),
  id: z.number(),
  rank: z.number(),
  attempt: z.number(),
  localRank: z.number(),
  world: z.number(),
  control: z.object({ hostname: z.string(), port: z.number() }),
  write: z.array(z.string()),
  net: z.array(z.string()),
});
export type RankStart = Omit<z.output<typeof startSchema>, "kind" | "id">;

const fromMember = z.discriminatedUnion("kind", [
  z.object({
    kind: z.literal("hello"),
    name: z.string().max(1000),
    /** By which ranks elsewhere reach those of this host. */
    address: z.string().max(1000),
    nproc: z.number().int().min(1).max(4096),
    version: z.string().max(1000),
    /** Where a launcher has numbered the ranks: the number of this host's first. */
    firstRank: z.number().int().min(0).optional(),
    /** Where a launcher has numbered the ranks of each machine: that of this host's first. */
    localRank: z.number().int().min(0).optional(),
  }),
  z.object({ kind: z.literal("ready"), record: z.string() }),
  z.object({ kind: z.literal("started"), id: z.number(), pid: z.number() }),
  z.object({ kind: z.literal("message"), id: z.number(), text: z.string() }),
  z.object({ kind: z.literal("ended"), id: z.number(), reason: reasonSchema }),
  /** Someone asked this host to end, as schedulers do all of them: the run is to save and stop. */
  z.object({ kind: z.literal("stop") }),
  z.object({ kind: z.literal("pong") }),
]);
const fromRoot = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("welcome"), world: z.number() }),
  z.object({ kind: z.literal("refused"), reason: z.string() }),
  z.object({ kind: z.literal("admitted") }),
  startSchema,
  z.object({ kind: z.literal("message"), id: z.number(), text: z.string() }),
  z.object({ kind: z.literal("kill"), id: z.number() }),
  z.object({ kind: z.literal("close"), id: z.number() }),
  z.object({ kind: z.literal("finish"), code: z.number(), text: z.string() }),
  z.object({ kind: z.literal("ping") }),
]);

/** Exit code of a member that was told twice to end: what shells give to one that SIGINT ended. */
const leftAtOnce = 130;
const pingMs = 1000;
/** So long without a word, and the other side is gone. */
const silentMs = 6000;

const encode = (message: unknown) => new TextDecoder().decode(encodeJson(message));
const decode = (text: string) => decodeJson(new TextEncoder().encode(text));

/** One side's writing end: frames go out one after the other. */
function speaker(stream: FrameStream) {
  let last: Promise<void> = Promise.resolve();
  return (message: unknown) => {
    last = last.then(() => say(stream, message)).catch(() => closeQuietly(stream)); // its reader notices
    return last;
  };
}

interface Member {
  readonly name: string;
  readonly address: string;
  readonly nproc: number;
  readonly firstRank: number | undefined;
  readonly localRank: number | undefined;
  readonly joined: number;
  readonly tell: (message: z.input<typeof fromRoot>) => Promise<void>;
  readonly ranks: Map<number, { arrived: (message: unknown) => void; ended: (reason: Reason) => void; pid: number }>;
}

/** A rank's place: on which host, and as which of its ranks. */
export interface Seat {
  /** Absent for this host. */
  readonly member: Member | undefined;
  readonly localRank: number;
}

export interface HostsOptions {
  /** Of the root: by which members reach it. */
  readonly hostname: string;
  readonly port: number;
  readonly token: string;
  readonly encrypt: boolean;
  /** Ranks that the root itself starts. */
  readonly nproc: number;
  /** The root's own first rank on its machine, where a launcher numbers them. @default {0} */
  readonly localRank?: number;
  /** Ranks in all. */
  readonly world: number;
  readonly version: string;
  /** The resolved record as text: the same on all hosts. */
  readonly record: string;
  readonly onNotice: (text: string) => void;
  /** A rank's process is there, and its number known. */
  readonly onStarted?: () => void;
  /** A member's scheduler wants it to end. */
  readonly onStop: (host: string) => void;
}

export interface Hosts extends AsyncDisposable {
  readonly port: number;
  /** Ranks for which there are hosts. */
  readonly ranks: number;
  /**
   * Waits until there are hosts for all ranks, or for as many as `enough` says are enough once `patienceMs` have passed.
   *
   * @throws when they do not come in time, naming how many are missing
   */
  muster(options: { patienceMs: number; timeoutMs: number; enough?: (ranks: number) => boolean }): Promise<Seat[]>;
  /** Addresses of all hosts. */
  addresses(): string[];
  /** Starts a rank on a member. */
  start(seat: Seat, start: RankStart): Host;
  /** Tells all members that the run is over, and how they are to end. */
  finish(code: number, text: string): Promise<void>;
}

/** What of two records differs first, for people. */
function firstDifference(theirs: string, ours: string): string {
  const lines = ours.split("\n"), other = theirs.split("\n");
  const at = other.findIndex((line, i) => line !== lines[i]);
  const line = at < 0 ? lines[other.length] ?? "" : other[at]!;
  return `"${line.trim()}" there, "${(lines[Math.max(0, at)] ?? "").trim()}" at the root`;
}

/** For so long nothing more is told of an address that was just told of. */
const refusalQuietMs = 10_000;
const mostAddresses = 1000;

/** Tells of refused connections, but does not let a scanner fill the log: an address is told of once in a while, with a count. */
export function refusals(onNotice: (text: string) => void, now: () => number = () => performance.now()) {
  const told = new Map<string, { atMs: number; untold: number }>();
  return (reason: string, from: string): void => {
    const before = told.get(from);
    if (before && now() - before.atMs < refusalQuietMs) return void before.untold++;
    const more = before?.untold ? ` (and ${before.untold} more from there before)` : "";
    if (!before && told.size >= mostAddresses) told.clear();
    told.set(from, { atMs: now(), untold: 0 });
    onNotice(`A connection from ${from} was refused: ${reason}${more}`);
  };
}

/** The root's part. */
export function openHosts(options: HostsOptions): Hosts {
  const { hostname, port, token, encrypt, nproc, world, version, record, onNotice } = options;
  const members = new Set<Member>(), streams = new Set<FrameStream>(), serving = new Set<Promise<void>>();
  let changed = Promise.withResolvers<void>(), joins = 0, nextId = 0, finished = false;
  const change = () => {
    changed.resolve();
    changed = Promise.withResolvers();
  };
  const here = () => [...members].reduce((sum, { nproc }) => sum + nproc, nproc);

  const serve = async (stream: FrameStream): Promise<void> => {
    streams.add(stream);
    const tell = speaker(stream) as Member["tell"];
    let member: Member | undefined, patience: Disposable | undefined, silent = false;
    try {
      const first = () => within(handshakeMs * 4, () => closeQuietly(stream), () => hear(stream, fromMember));
      const hello = await first();
      if (hello?.kind !== "hello") return;
      const refuse = async (reason: string) => {
        await tell({ kind: "refused", reason });
        onNotice(`Host ${hello.name} (${hello.address}) was refused: ${reason}`);
      };
      if (hello.version !== version) {
        return await refuse(`it runs Troupe ${hello.version}, the root runs ${version}`);
      }
      if (here() + hello.nproc > world) {
        return await refuse(
          `it brings ${hello.nproc} ranks, and ${
            world - here()
          } of ${world} are missing; --nproc of that number would work`,
        );
      }
      await tell({ kind: "welcome", world });
      const ready = await first();
      if (ready?.kind !== "ready") return;
      if (ready.record !== record) {
        return await refuse(`it has another configuration: ${firstDifference(ready.record, record)}`);
      }
      await tell({ kind: "admitted" });
      const { name, address, firstRank, localRank } = hello;
      member = { name, address, nproc: hello.nproc, firstRank, localRank, joined: joins++, tell, ranks: new Map() };
      members.add(member);
      change();
      const beat = () => {
        patience?.[Symbol.dispose]();
        patience = afterPatience(silentMs, () => {
          silent = true;
          closeQuietly(stream);
        });
      };
      beat();
      const pinging = setInterval(() => void tell({ kind: "ping" }), pingMs);
      try {
        for (;;) {
          const message = await hear(stream, fromMember);
          if (message === null) break;
          beat();
          if (message.kind === "started") {
            const rank = member.ranks.get(message.id);
            if (rank) rank.pid = message.pid; // or it ended before
            options.onStarted?.();
          } else if (message.kind === "message") member.ranks.get(message.id)?.arrived(decode(message.text));
          else if (message.kind === "ended") member.ranks.get(message.id)?.ended(message.reason);
          else if (message.kind === "stop") options.onStop(member.name);
        }
      } finally {
        clearInterval(pinging);
      }
    } catch (error) {
      if (!silent && !finished) {
        onNotice(`The connection to host ${member?.name ?? "?"} broke: ${(error as Error).message}`);
      }
    } finally {
      patience?.[Symbol.dispose]();
      streams.delete(stream);
      closeQuietly(stream);
      if (member) {
        members.delete(member);
        const why = silent ? `was not heard of for ${silentMs / 1000} s` : "is gone: its connection closed";
        for (const rank of member.ranks.values()) rank.ended(lost(`host ${member.name} ${why}`));
        if (!finished) onNotice(`Host ${member.name} (${member.address}) ${why}`);
        change();
      }
    }
  };

  const gate: Gate = openGate({
    hostname,
    port,
    token,
    encrypt,
    onRefused: refusals(onNotice),
    onStream(stream) {
      const served = serve(stream).finally(() => serving.delete(served));
      serving.add(served);
    },
  });

  /** Launchers number ranks; others come in the order in which they joined. */
  const seats = (): Seat[] => {
    const own: Seat[] = Array.from({ length: nproc }, (_, i) => (
      { member: undefined, localRank: (options.localRank ?? 0) + i }
    ));
    const sorted = [...members].sort((a, b) => (a.firstRank ?? a.joined) - (b.firstRank ?? b.joined));
    return [
      ...own,
      ...sorted.flatMap((member) =>
        Array.from({ length: member.nproc }, (_, i): Seat => ({ member, localRank: (member.localRank ?? 0) + i }))
      ),
    ];
  };

  return {
    port: gate.address.port,
    get ranks() {
      return here();
    },
    async muster({ patienceMs, timeoutMs, enough = () => false }) {
      const began = performance.now();
      for (;;) {
        const all = seats(), waited = performance.now() - began;
        if (all.length >= world) return all.slice(0, world);
        if (waited >= patienceMs && enough(all.length)) return all;
        if (waited >= timeoutMs) {
          throw new Error(
            `${world - all.length} of ${world} ranks are missing after ${
              Math.round(timeoutMs / 1000)
            } s; on their hosts, ` +
              `troupe train --join --host ${hostname} --port ${gate.address.port} would bring them`,
          );
        }
        const next = waited < patienceMs ? patienceMs - waited : timeoutMs - waited;
        const { promise: late, resolve } = Promise.withResolvers<void>();
        const timer = setTimeout(resolve, next);
        await Promise.race([changed.promise, late]);
        clearTimeout(timer);
      }
    },
    addresses: () => [...new Set([hostname, ...[...members].map(({ address }) => address)])],
    start({ member }, start) {
      if (!member) throw new TypeError("Cannot start a rank on a member: the seat is on this host");
      const id = nextId++, { promise: ended, resolve } = Promise.withResolvers<Reason>();
      const { channel, arrived } = makeChannel(
        (message) => void member.tell({ kind: "message", id, text: encode(message) }),
        () => void member.tell({ kind: "close", id }),
      );
      const entry = {
        arrived,
        pid: 0,
        ended(reason: Reason) {
          member.ranks.delete(id);
          channel.close(reason);
          resolve(reason);
        },
      };
      member.ranks.set(id, entry);
      if (members.has(member)) void member.tell({ kind: "start", id, ...start });
      else queueMicrotask(() => entry.ended(lost(`host ${member.name} is gone`)));
      return {
        channel,
        ended,
        get pid() {
          return entry.pid;
        },
        kill: () => void member.tell({ kind: "kill", id }),
      };
    },
    async finish(code, text) {
      finished = true;
      await Promise.all([...members].map(({ tell }) => tell({ kind: "finish", code, text })));
    },
    async [Symbol.asyncDispose]() {
      finished = true;
      await gate.close();
      for (const stream of streams) closeQuietly(stream);
      await Promise.all(serving);
    },
  };
}

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
