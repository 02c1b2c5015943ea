/**
 * Hosts: how the root's supervisor starts ranks on other machines. On each of them a member of the run (member.ts) holds one
 * connection to the root, starts the rank processes that the root asks for, and carries their messages; to the supervisor a
 * rank there is a `Host` like one that runs here. A member that is not heard of is gone, and with it its ranks; a root that
 * is not heard of ends its members, and they their ranks.
 */
import type { z } from "zod";
import { closeQuietly } from "../src/comm/handshake.ts";
import { afterPatience } from "../src/comm/patience.ts";
import { type Gate, handshakeMs, hear, openGate, within } from "../src/comm/transport/gate.ts";
import type { FrameStream } from "../src/comm/transport/frame_stream.ts";
import { decode, encode, fromMember, type fromRoot, type RankStart, silentMs, speaker } from "./hosts_protocol.ts";
import { type Host, lost, makeChannel, type Reason } from "./runtime/mod.ts";

const pingMs = 1000;

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
