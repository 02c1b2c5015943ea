/** Collectives on groups of ranks: one at a time on a group, in the same order on all its ranks. */
import {
  describeTag,
  type ElementType,
  maxBodyBytes,
  type Operator,
  type Reduction,
  type Tag,
} from "../transport/frame.ts";
import { CommunicationError } from "../transport/link.ts";
import type { Status, Transport } from "../transport/transport.ts";
import * as algorithms from "./algorithms.ts";
import { bytesOf, type Elements, typeOf } from "./elements.ts";
import { vectorMemory } from "./vector_sum.ts";

export interface CommunicatorOptions {
  /** After how long the others of a group are asked where they are, again and again. @default {2000} */
  readonly patienceMs?: number;
  /** How long a rank may neither answer nor move a byte; one that does is gone, and all abort. @default {2500} */
  readonly answerMs?: number;
  /** After how long without a byte a collective is given up, though all ranks answer. @default {600_000} */
  readonly timeoutMs?: number;
  /**
   * Told who is waited for, once a collective; of messages between two ranks, and where ranks share a GPU, only where one
   * waits thirty times as long.
   */
  readonly onLate?: (report: string) => void;
}

export interface Communicator {
  readonly transport: Transport;
  /** The group of `ranks`, which this rank is one of. The same name and ranks give the same group. */
  group(name: string, ranks: readonly number[]): Group;
}

/** In place throughout: `data` is the operand and the result. */
export interface Group {
  readonly name: string;
  readonly ranks: readonly number[];
  readonly index: number;
  allReduce(data: Elements, reduction?: "sum" | "max"): Promise<void>;
  /**
   * Leaves this rank's part of the sum in its place in `data`; the rest of `data` is undefined afterwards.
   *
   * @param counts elements of each rank's part; even parts, the first ones longer, if left out
   * @returns this rank's part
   */
  reduceScatter<T extends Elements>(data: T, counts?: readonly number[]): Promise<T>;
  /** Fills `data` from the parts that the ranks have in their places. */
  allGather(data: Elements, counts?: readonly number[]): Promise<void>;
  /** @param root place in the group */
  broadcast(data: Elements, root: number): Promise<void>;
  /** The root fills `data` from the parts that the ranks have in their places; `data` of the others stays. */
  gather(data: Elements, counts: readonly number[] | undefined, root: number): Promise<void>;
  /** The root gets the sum; `data` of the other ranks is undefined afterwards. */
  reduce(data: Elements, root: number): Promise<void>;
  /** Part i of `from` goes to rank i. @param counts elements of each part, of what goes and what comes */
  allToAll(
    from: Elements,
    into: Elements,
    counts?: { readonly from: readonly number[]; readonly into: readonly number[] },
  ): Promise<void>;
  barrier(): Promise<void>;
  /** To and from one rank, by its place; in order with other messages of that pair and direction. */
  send(to: number, data: Elements): Promise<void>;
  receive(from: number, into: Elements): Promise<void>;
}

/** FNV-1a: names a group by what it is, so that all its ranks agree without a word. */
function hash(text: string): number {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  return value;
}

/** The number that frames of a group's collectives carry, or those of a pair's messages (`pairName`). */
export const laneId = (name: string, ranks: readonly number[]): number => hash(`${name} ${ranks.join()}`);
/** The lane of messages from one rank of a group to another. */
export const pairName = (group: string, from: number, to: number): string => `${group}, ${from} to ${to}`;

/** A line of work within which the order is the same on all ranks: a group's collectives, or a pair's messages. */
interface Lane {
  readonly id: number;
  readonly name: string;
  /** Ranks of the world that take part. */
  readonly ranks: readonly number[];
  begun: number;
  /** When the last of them is over, has posted all its receives, and has sent all that it sends. */
  last: Promise<void>;
  posted: Promise<void>;
  sent: Promise<void>;
}

/** How finely patience is counted. */
const turnsOfPatience = 8;

/**
 * @example
 * ```ts
 * import { createCommunicator } from "./communicator.ts";
 * import { simulatedWorld } from "../transport/simulated.ts";
 * const world = simulatedWorld(3);
 * const sums = await Promise.all(world.map(async (transport) => {
 *   const data = Float32Array.of(transport.rank, 1);
 *   await createCommunicator(transport).group("data", [0, 1, 2]).allReduce(data);
 *   return data.join();
 * }));
 * console.assert(sums.every((sum) => sum === "3,3"));
 * await Promise.all(world.map((transport) => transport.close()));
 * ```
 */
export function createCommunicator(transport: Transport, options: CommunicatorOptions = {}): Communicator {
  const { patienceMs = 2000, answerMs = 2500, timeoutMs = 600_000, onLate } = options, { rank } = transport;
  const lanes = new Map<number, Lane>(), groups = new Map<number, Group>();
  let latest = "nothing yet";
  transport.answer = (): Status => ({
    status: latest,
    groups: Object.fromEntries([...lanes.values()].map(({ id, begun }) => [id, begun])),
  });

  const laneOf = (name: string, ranks: readonly number[]): Lane => {
    const id = laneId(name, ranks), known = lanes.get(id);
    if (known && (known.name !== name || known.ranks.join() !== ranks.join())) {
      throw new RangeError(`Groups ${known.name} and ${name} have the same number; another name would work`);
    }
    const now = Promise.resolve(), lane = known ?? { id, name, ranks, begun: 0, last: now, posted: now, sent: now };
    lanes.set(id, lane);
    return lane;
  };

  /** Who is missing, in words, and whether someone does not answer at all. */
  const whoIsMissing = async (lane: Lane, what: string, sequence: number) => {
    const others = lane.ranks.filter((other) => other !== rank);
    const answers = await Promise.all(others.map(async (other) => {
      const bytes = transport.bytesMoved(other), signs = transport.signs(other);
      const status = await transport.ask(other, answerMs);
      // On a slow link the answer stands in line behind data.
      const moves = transport.bytesMoved(other) > bytes || (!status && transport.signs(other) > signs);
      return { other, status, moves };
    }));
    let silent = false;
    const told = answers.flatMap(({ other, status, moves }) => {
      if (moves) return [];
      if (!status) {
        silent = true;
        const heard = [transport.heard(), ...answers.map(({ status }) => status?.heard)]
          .flatMap((each) => each?.[other] ?? [])
          .sort((a, b) => Number(b.group === lane.id) - Number(a.group === lane.id) || b.sequence - a.sequence);
        return [`rank ${other} does not answer, its last was ${heard[0]?.text ?? "nothing yet"}`];
      }
      const begun = (status.groups[lane.id] ?? 0) > sequence;
      return begun ? [] : [`rank ${other} is not there yet, its last was ${status.status}`];
    });
    const who = told.length > 0 ? told.join("; ") : "all ranks are there, and no byte moves";
    return { silent, someone: told.length > 0, report: `Rank ${rank} waits in ${what}: ${who}` };
  };

  /** Collectives under way, and looking: what to do when so many turns of the one timer have passed. */
  const watched = new Set<{ turns: number; look: () => void }>();
  let ticking = false;
  /** A collective that is over at once has no timer of its own: that would take longer than it does. */
  const tick = () => {
    if (watched.size === 0) return !(ticking = false);
    for (const each of watched) if (--each.turns === 0) each.look();
    return false;
  };

  /** Looks after a collective for as long as it takes. */
  const watch = (lane: Lane, what: string, sequence: number, tellAfterMs: number) => {
    let told = false, seen = transport.bytesMoved(), movedAt = performance.now();
    const tellAt = performance.now() + tellAfterMs;
    const look = async () => {
      const { silent, someone, report } = await whoIsMissing(lane, what, sequence);
      if (!watched.has(own)) return;
      const now = transport.bytesMoved();
      if (now !== seen) [seen, movedAt] = [now, performance.now()];
      if (silent || performance.now() - movedAt >= timeoutMs) return transport.abort(report);
      const tell = someone && performance.now() >= tellAt;
      if (tell && !told) onLate?.(report);
      told ||= tell;
      own.turns = turnsOfPatience;
    };
    const own = { turns: turnsOfPatience, look };
    watched.add(own);
    if (!ticking) transport.every(patienceMs / turnsOfPatience, tick);
    ticking = true;
    return { [Symbol.dispose]: () => void watched.delete(own) };
  };

  interface Call {
    readonly operator: Operator;
    readonly type: ElementType;
    readonly count: number;
    readonly reduction?: Reduction;
    readonly root?: number;
  }
  const run = (
    lane: Lane,
    { operator, type, count, reduction = "none", root = 0 }: Call,
    work: (tagged: (step: number) => Tag, line: algorithms.Line) => Promise<void>,
  ): Promise<void> => {
    const sequence = lane.begun++, { last: turn, posted: mayPost, sent: maySend } = lane;
    const posted = Promise.withResolvers<void>(), sent = Promise.withResolvers<void>();
    [lane.posted, lane.sent] = [posted.promise, sent.promise];
    const line: algorithms.Line = { turn, maySend, posted: posted.resolve, sent: sent.resolve };
    const tagged = (step: number): Tag => ({
      operator,
      group: lane.id,
      sequence,
      step: step + root * 65536,
      type,
      reduction,
      count,
    });
    const what = `${describeTag(tagged(0))} of ${lane.name}`;
    const done = mayPost.then(async () => {
      const working = work(tagged, line);
      working.catch(() => {}); // told below
      await turn;
      latest = `${what}, under way`;
      // A stage of a pipeline waits for its turn in every step, and so may ranks that share a GPU; others that meet in a
      // collective should all be there.
      const inTurns = operator === "send" ||
        lane.ranks.some((other) => other !== rank && transport.sharing.includes(other));
      using _ = watch(lane, what, sequence, inTurns ? 30 * patienceMs : 0);
      try {
        await working;
        latest = `${what}, finished`;
      } catch (error) {
        if (error instanceof CommunicationError) throw error;
        // The others wait for what will not come.
        const reason = `Rank ${rank} failed in ${what}: ${(error as Error).message}`;
        transport.abort(reason);
        throw new CommunicationError(reason, { cause: error });
      }
    });
    lane.last = done.catch(() => {}).finally(() => {
      posted.resolve();
      sent.resolve();
    });
    return done;
  };

  const deliver = (
    ranks: readonly number[],
    index: number,
    tagged: (step: number) => Tag,
    line: algorithms.Line,
    scratch: () => Uint8Array,
  ) => ({
    size: ranks.length,
    index,
    line,
    scratch,
    send: (to: number, step: number, data: Elements, until?: algorithms.Until) =>
      transport.send(ranks[to]!, tagged(step), bytesOf(data), until),
    receive(from: number, step: number, into: Elements, arrived?: (offset: number, length: number) => void) {
      const bytes = bytesOf(into);
      return transport.receive(ranks[from]!, tagged(step), bytes.length, {
        place: (offset, length) => bytes.subarray(offset, offset + length),
        ...(arrived ? { arrived } : {}),
      });
    },
    receivePieces(
      from: number,
      step: number,
      bytes: number,
      room: Uint8Array,
      arrived: (offset: number, length: number) => void,
    ) {
      return transport.receive(ranks[from]!, tagged(step), bytes, {
        place: (_, length) => room.subarray(0, length),
        arrived,
      });
    },
  });

  const createGroup = (name: string, ranks: readonly number[]): Group => {
    const index = ranks.indexOf(rank);
    if (index < 0) throw new RangeError(`Cannot use group ${name} on rank ${rank}: it is of ranks ${ranks.join(", ")}`);
    const lane = laneOf(name, ranks), size = ranks.length;
    let room: Uint8Array | undefined;
    const scratch = () => room ??= new Uint8Array(vectorMemory(maxBodyBytes), 0, maxBodyBytes);
    const collective = (
      call: Call,
      work: (round: algorithms.Round) => Promise<void>,
    ): Promise<void> => {
      if (size === 1) return Promise.resolve();
      return run(lane, call, (tagged, line) => work(deliver(ranks, index, tagged, line, scratch)));
    };
    const summable = (data: Elements, operator: Operator) => {
      const type = typeOf(data);
      if (type === "bytes") throw new TypeError(`Cannot sum bytes in ${operator}: f32, f16 and bf16 can be summed`);
      return { operator, type, count: data.length };
    };
    const bounds = (data: Elements, counts: readonly number[] | undefined, operator: string): number[] => {
      if (!counts) return algorithms.evenBounds(data.length, size);
      let end = 0;
      const all = [0, ...counts.map((count) => end += count)];
      if (counts.length !== size || end !== data.length || counts.some((n) => !Number.isSafeInteger(n) || n < 0)) {
        throw new RangeError(
          `Cannot divide ${data.length} elements for ${operator} by [${counts}]: ` +
            `${size} whole numbers that add up to them would work`,
        );
      }
      return all;
    };
    const rootOf = (root: number): number => {
      if (ranks[root] !== undefined) return root;
      throw new RangeError(`Root ${root} is not one of the ${size} places of group ${name}`);
    };
    const pair = (from: number, to: number) =>
      laneOf(pairName(name, ranks[from]!, ranks[to]!), [ranks[from]!, ranks[to]!]);
    const other = (place: number): number => {
      if (place !== index && ranks[place] !== undefined) return place;
      throw new RangeError(`Place ${place} is not another of the ${size} places of group ${name}`);
    };
    return {
      name,
      ranks,
      index,
      allReduce: async (data, reduction = "sum") =>
        await collective(
          { ...summable(data, "all-reduce"), reduction },
          (round) => algorithms.allReduce(round, data, reduction),
        ),
      async reduceScatter(data, counts) {
        const at = bounds(data, counts, "reduce-scatter");
        await collective(
          { ...summable(data, "reduce-scatter"), reduction: "sum" },
          (round) => algorithms.reduceScatter(round, data, at, "sum"),
        );
        return data.subarray(at[index], at[index + 1]) as typeof data;
      },
      async allGather(data, counts) {
        const at = bounds(data, counts, "all-gather");
        await collective(
          { operator: "all-gather", type: typeOf(data), count: data.length },
          (round) => algorithms.allGather(round, data, at),
        );
      },
      broadcast: async (data, root) =>
        await collective(
          { operator: "broadcast", type: typeOf(data), count: data.length, root: rootOf(root) },
          (round) => algorithms.broadcast(round, data, root),
        ),
      async gather(data, counts, root) {
        const at = bounds(data, counts, "gather");
        await collective(
          { operator: "gather", type: typeOf(data), count: data.length, root: rootOf(root) },
          (round) => algorithms.gather(round, data, at, root),
        );
      },
      reduce: async (data, root) =>
        await collective(
          { ...summable(data, "reduce"), reduction: "sum", root: rootOf(root) },
          (round) => algorithms.reduce(round, data, root, "sum"),
        ),
      async allToAll(from, into, counts) {
        const fromBounds = bounds(from, counts?.from, "all-to-all");
        const intoBounds = bounds(into, counts?.into, "all-to-all");
        if (typeOf(from) !== typeOf(into)) {
          throw new TypeError(`Cannot exchange ${typeOf(from)} for ${typeOf(into)} in all-to-all: one type would work`);
        }
        if (fromBounds[index + 1]! - fromBounds[index]! !== intoBounds[index + 1]! - intoBounds[index]!) {
          throw new RangeError("Cannot keep this rank's own part in all-to-all: it goes and comes with two sizes");
        }
        // Counts differ between ranks, so that they are no part of what all must agree on; each message's size is.
        if (size === 1) return into.set(from);
        await collective(
          { operator: "all-to-all", type: typeOf(from), count: counts ? 0 : from.length },
          (round) => algorithms.allToAll(round, { from, fromBounds, into, intoBounds }),
        );
      },
      barrier: async () =>
        await collective(
          { operator: "barrier", type: "f32", count: 1, reduction: "sum" },
          (round) => algorithms.allReduce(round, new Float32Array(1), "sum"),
        ),
      async send(to, data) {
        const lane = pair(index, other(to));
        await run(
          lane,
          { operator: "send", type: typeOf(data), count: data.length },
          async (tagged, { turn }) => {
            await turn;
            await transport.send(ranks[to]!, tagged(0), bytesOf(data));
          },
        );
      },
      async receive(from, into) {
        const lane = pair(other(from), index);
        await run(
          lane,
          { operator: "send", type: typeOf(into), count: into.length },
          async (tagged, line) => {
            await line.turn;
            await deliver(ranks, index, tagged, line, scratch).receive(from, 0, into);
          },
        );
      },
    };
  };

  return {
    transport,
    group(name, ranks) {
      const id = laneId(name, ranks);
      const group = groups.get(id) ?? createGroup(name, ranks);
      groups.set(id, group);
      return group;
    },
  };
}
