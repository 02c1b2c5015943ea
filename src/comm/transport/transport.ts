/** One rank's links to its peers, and what concerns them all: aborts, questions, the end. */
import { z } from "zod";
import { afterPatience } from "../patience.ts";
import { describeTag, type Tag } from "./frame.ts";
import type { FrameStream } from "./frame_stream.ts";
import { CommunicationError, Link, type Sink } from "./link.ts";

const controlSchema = z.discriminatedUnion("kind", [
  z.object({ kind: z.literal("abort"), reason: z.string() }),
  z.object({ kind: z.literal("bye") }),
  /** What you send comes, if slowly. */
  z.object({ kind: z.literal("receiving") }),
  z.object({ kind: z.literal("ask"), id: z.number() }),
  z.object({
    kind: z.literal("status"),
    id: z.number(),
    status: z.string(),
    groups: z.record(z.string(), z.number()),
    heard: z.record(z.string(), z.object({ text: z.string(), group: z.number(), sequence: z.number() })),
  }),
]);

/** Where a rank is. */
export interface Status {
  /** Its last collective, for people. */
  readonly status: string;
  /** Collectives it has begun, by group. */
  readonly groups: Readonly<Record<string, number>>;
}

/** What a rank last heard of another, within a collective. */
export interface Heard {
  readonly text: string;
  readonly group: number;
  readonly sequence: number;
}

export interface Answer extends Status {
  /** What the answering rank last heard of each of its peers: one that is silent may have spoken to others. */
  readonly heard: Readonly<Record<string, Heard>>;
}

export interface Transport {
  readonly rank: number;
  readonly world: number;
  /** Ranks that use the same GPU, this one among them, in their order; empty where that is not known. */
  readonly sharing: readonly number[];
  /** @param until resolves when so many bytes of the body may leave; all may at once where there is none */
  send(to: number, tag: Tag, body: Uint8Array, until?: (bytes: number) => Promise<void> | undefined): Promise<void>;
  receive(from: number, tag: Tag, bytes: number, sink: Sink): Promise<void>;
  /** Asks a peer where it is; nothing if it does not answer in time, which a living one does at once. */
  ask(peer: number, timeoutMs: number): Promise<Answer | undefined>;
  /** What peers that ask are told. */
  answer: () => Status;
  /** What was last heard of each peer that has spoken in a collective. */
  heard(): Record<string, Heard>;
  /** Grows with every piece of a message that moves, either way, to or from one peer or any. */
  bytesMoved(peer?: number): number;
  /** Grows with whatever comes from a peer, in however small parts. */
  signs(peer: number): number;
  /** Ends all communication here and, by way of every link, everywhere. The first reason stands. */
  abort(reason: string): void;
  /** Aborted by this rank or another, or broken. */
  readonly aborted: Promise<CommunicationError>;
  /** Calls again and again until all is closed; no longer after what returns true. */
  every(ms: number, call: () => boolean): void;
  /** Says farewell and waits, up to `timeoutMs`, until the peers have too. */
  close(timeoutMs?: number): Promise<void>;
}

/** @param streams one per peer, authenticated */
export function createTransport(
  { rank, world, streams, sharing = [] }: {
    rank: number;
    world: number;
    streams: ReadonlyMap<number, FrameStream>;
    sharing?: readonly number[];
  },
): Transport {
  let failure: CommunicationError | undefined, closing = false, nextId = 0;
  const { promise: aborted, resolve: tellAborted } = Promise.withResolvers<CommunicationError>();
  const asked = new Map<number, (status: Answer) => void>(), left = new Map<number, () => void>();
  const timers = new Set<ReturnType<typeof setInterval>>();

  const abort = (reason: string): void => {
    if (failure || closing) return;
    failure = new CommunicationError(reason);
    for (const link of links.values()) {
      link.control({ kind: "abort", reason }).catch(() => {}); // who cannot be told notices by itself
      link.fail(failure);
    }
    tellAborted(failure);
  };

  const onControl = (peer: number, value: unknown): void => {
    const message = controlSchema.parse(value);
    switch (message.kind) {
      case "abort":
        return abort(message.reason);
      case "bye":
        links.get(peer)!.farewell();
        return left.get(peer)!();
      case "ask":
        links.get(peer)!.control({
          kind: "status",
          id: message.id,
          ...transport.answer(),
          heard: transport.heard(),
        }).catch(() => {});
        return;
      case "status":
        asked.get(message.id)?.(message);
    }
  };
  const links = new Map<number, Link>(), goodbyes: Promise<void>[] = [];
  for (const [peer, stream] of streams) {
    const { promise, resolve } = Promise.withResolvers<void>();
    left.set(peer, resolve);
    goodbyes.push(promise);
    links.set(
      peer,
      new Link({ rank, peer, stream, onControl: (value) => onControl(peer, value), onFailure: abort }),
    );
  }
  const linkTo = (peer: number): Link => {
    const link = links.get(peer);
    if (link) return link;
    throw new RangeError(`Rank ${rank} has no connection to rank ${peer}; it has to ${[...links.keys()].join(", ")}`);
  };

  const transport: Transport = {
    rank,
    world,
    sharing,
    send: (to, tag, body, until) => linkTo(to).send(tag, body, until),
    receive: (from, tag, bytes, sink) => linkTo(from).receive(tag, bytes, sink),
    async ask(peer, timeoutMs) {
      const id = nextId++, { promise, resolve } = Promise.withResolvers<Answer | undefined>();
      using _ = afterPatience(timeoutMs, () => resolve(undefined));
      asked.set(id, resolve);
      linkTo(peer).control({ kind: "ask", id }).catch(() => resolve(undefined));
      try {
        return await promise;
      } finally {
        asked.delete(id);
      }
    },
    answer: () => ({ status: "nothing yet", groups: {} }),
    heard: () =>
      Object.fromEntries(
        [...links].flatMap(([peer, { lastHeard: tag }]) =>
          tag ? [[peer, { text: describeTag(tag), group: tag.group, sequence: tag.sequence }]] : []
        ),
      ),
    bytesMoved: (peer) =>
      peer === undefined
        ? [...links.values()].reduce((sum, link) => sum + link.bytesMoved, 0)
        : linkTo(peer).bytesMoved,
    signs: (peer) => linkTo(peer).signs,
    abort,
    aborted,
    every(ms, call) {
      if (closing) return;
      const timer = setInterval(() => {
        if (!call()) return;
        clearInterval(timer);
        timers.delete(timer);
      }, ms);
      timers.add(timer);
    },
    async close(timeoutMs = 2000) {
      if (closing) return;
      closing = true;
      for (const timer of timers) clearInterval(timer);
      const { promise: late, resolve } = Promise.withResolvers<void>();
      const timer = setTimeout(resolve, timeoutMs);
      const ends = [...links.values()].map(({ ended }) => ended);
      if (failure) await Promise.race([Promise.all([...links.values()].map(({ flushed }) => flushed)), late]);
      else {
        // A connection closed with bytes unread would take back bytes that the peer has not read either.
        for (const link of links.values()) link.control({ kind: "bye" }).catch(() => {});
        await Promise.race([Promise.all(goodbyes.map((gone, i) => Promise.race([gone, ends[i]]))), late]);
      }
      clearTimeout(timer);
      for (const link of links.values()) {
        link.farewell();
        link.fail(new CommunicationError(`Rank ${rank} has closed its connections`));
        link.close();
      }
      await Promise.all(ends);
    },
  };
  return transport;
}
