/**
 * The algorithms, each for one rank of a group, over messages. What is summed, and in which order, follows from places
 * in the group alone, so results repeat bit for bit; every rank gets the same bits.
 *
 * Large `float32` data goes round a ring: each link carries (n − 1)/n of it for a reduce-scatter, as much for an
 * all-gather. Half types are summed where they end (pairwise exchange: the same bytes), so that a sum is rounded once.
 * Small data takes the fewest steps: recursive doubling, binomial trees.
 */
import { maxBodyBytes, type Reduction } from "../transport/frame.ts";
import { accumulate, type Elements, narrow, part, widen } from "./elements.ts";

/**
 * A collective's place in the line of its group. One that asks for all it receives beforehand need not stand in it: it
 * asks when those before it have asked, sends when they have sent, and lets the next one do so.
 */
export interface Line {
  /** Those before it are over. */
  readonly turn: Promise<void>;
  readonly maySend: Promise<void>;
  posted(): void;
  sent(): void;
}

/** One collective on one rank: its place among the others, and messages to them by place. */
export interface Round {
  readonly size: number;
  readonly index: number;
  /** To be waited for: `turn`, unless receives are asked for in its order. */
  readonly line: Line;
  /** @param until resolves when so many bytes of the data may leave; all may at once where there is none */
  send(to: number, step: number, data: Elements, until?: Until): Promise<void>;
  /** Resolves when `into` is full. @param arrived told of each piece that is in its place */
  receive(from: number, step: number, into: Elements, arrived?: Arrived): Promise<void>;
  /** Receives `bytes` bytes a piece at a time, each in `scratch`, which holds `maxBodyBytes`; `arrived` takes it. */
  receivePieces(from: number, step: number, bytes: number, scratch: Uint8Array, arrived: Arrived): Promise<void>;
  /** Room for pieces on their way into a sum; one message at a time. */
  readonly scratch: () => Uint8Array;
}
type Arrived = (offset: number, length: number) => void;
export type Until = (bytes: number) => Promise<void> | undefined;

const wrap = (value: number, size: number) => (value % size + size) % size;

/** Where each rank's part begins, and at last the end: parts as even as can be, the first ones longer. */
export function evenBounds(length: number, parts: number): number[] {
  const least = Math.floor(length / parts), longer = length % parts;
  return Array.from({ length: parts + 1 }, (_, i) => i * least + Math.min(i, longer));
}

/** Receives a message and adds it to `sum` as it arrives. @param arrived told of each piece that is added */
function receiveSum(
  round: Round,
  { from, step, sum, like, reduction, arrived }: {
    from: number;
    step: number;
    sum: Float32Array;
    like: Elements;
    reduction: Reduction;
    arrived?: Arrived;
  },
) {
  const scratch = round.scratch(), width = like.BYTES_PER_ELEMENT;
  const View = like.constructor as new (buffer: ArrayBufferLike, offset: number, length: number) => Elements;
  return round.receivePieces(from, step, sum.length * width, scratch, (offset, length) => {
    const at = offset / width, count = length / width;
    accumulate(sum.subarray(at, at + count), new View(scratch.buffer, scratch.byteOffset, count), reduction);
    arrived?.(offset, length);
  });
}

/** How far a message has come, for who hands it on piece by piece. */
class Progress {
  #bytes = 0;
  #wake: (() => void) | undefined;

  readonly arrived: Arrived = (offset, length) => {
    this.#bytes = offset + length;
    this.#wake?.();
  };
  /** For one waiter at a time. A message that fails leaves it waiting: its own failure is told. */
  readonly until: Until = (bytes) => this.#bytes >= bytes ? undefined : this.#reach(bytes);

  async #reach(bytes: number): Promise<void> {
    while (this.#bytes < bytes) await new Promise<void>((resolve) => this.#wake = resolve);
  }
}

/**
 * Round the ring, chunk by chunk: `sums` steps in which what comes is added, then `copies` in which it is taken as it is.
 * What a rank receives in one step it sends in the next, each piece as soon as it is there: so all links are busy at once,
 * also where one rank's chunk is the largest or the only one.
 */
async function ring(
  round: Round,
  data: Elements,
  { bounds, sums = 0, copies = 0, firstStep = 0, reduction = "none" }: {
    bounds: readonly number[];
    sums?: number;
    copies?: number;
    /** Of the collective, where this is not all of it. */
    firstStep?: number;
    reduction?: Reduction;
  },
): Promise<void> {
  const { size, index } = round, next = wrap(index + 1, size), previous = wrap(index - 1, size);
  // The chunk that goes first; a sum ends with its owner, from where copies begin.
  const first = sums > 0 ? index - 1 : index;
  const chunk = (step: number) => part(data, bounds[wrap(first - step, size)]!, bounds[wrap(first - step, size) + 1]!);
  // Asked for beforehand, so that no step waits for the word that there is room.
  const received = Array.from({ length: sums + copies }, (_, step) => {
    const { arrived, until } = new Progress(), into = chunk(step + 1);
    const done = step < sums
      ? receiveSum(round, {
        from: previous,
        step: firstStep + step,
        sum: into as Float32Array,
        like: data,
        reduction,
        arrived,
      })
      : round.receive(previous, firstStep + step, into, arrived);
    return { done, until };
  });
  round.line.posted();
  const sent = (async () => {
    await round.line.maySend;
    for (let step = 0; step < sums + copies; step++) {
      await round.send(next, firstStep + step, chunk(step), received[step - 1]?.until);
    }
    round.line.sent();
  })();
  await Promise.all([sent, ...received.map(({ done }) => done)]);
}

/** Everyone's part straight to everyone. */
async function directAllGather(round: Round, data: Elements, bounds: readonly number[]): Promise<void> {
  await round.line.turn;
  const { size, index } = round, chunk = (i: number) => part(data, bounds[i]!, bounds[i + 1]!);
  const others = Array.from({ length: size - 1 }, (_, i) => wrap(index + 1 + i, size));
  await Promise.all([
    ...others.map((other) => round.receive(other, 0, chunk(other))),
    ...others.map((other) => round.send(other, 0, chunk(index))),
  ]);
}

/** Each part is summed where it ends, in the order own, previous, the one before it … */
async function pairwiseReduceScatter(
  round: Round,
  data: Elements,
  bounds: readonly number[],
  reduction: Reduction,
): Promise<void> {
  await round.line.turn;
  const { size, index } = round, chunk = (i: number) => part(data, bounds[i]!, bounds[i + 1]!), own = chunk(index);
  const sum = own instanceof Float32Array ? own : new Float32Array(own.length);
  if (sum !== own) widen(own, sum);
  for (let step = 1; step < size; step++) {
    const to = wrap(index + step, size), from = wrap(index - step, size);
    await Promise.all([
      round.send(to, step, chunk(to)),
      receiveSum(round, { from, step, sum, like: data, reduction }),
    ]);
  }
  if (sum !== own) narrow(sum, own);
}

/** Sums small `float32` data in log₂(n) steps; ranks beyond a power of two hand theirs to one within it. */
async function recursiveDoubling(round: Round, sum: Float32Array, reduction: Reduction): Promise<void> {
  await round.line.turn;
  const { size, index } = round, inner = 2 ** Math.floor(Math.log2(size)), extra = size - inner;
  const other = new Float32Array(sum.length);
  if (index >= inner) {
    await round.send(index - inner, 0, sum);
    return await round.receive(index - inner, 1, sum);
  }
  if (index < extra) {
    await round.receive(index + inner, 0, other);
    accumulate(sum, other, reduction);
  }
  for (let mask = 1; mask < inner; mask *= 2) {
    const partner = index ^ mask;
    await Promise.all([round.send(partner, 1 + mask, sum), round.receive(partner, 1 + mask, other)]);
    accumulate(sum, other, reduction); // a + b and b + a have the same bits
  }
  if (index < extra) await round.send(index + inner, 1, sum);
}

/** Small data as `float32`, where it is no such already, for as long as `work` takes. */
async function asFloat32(data: Elements, work: (sum: Float32Array) => Promise<void>): Promise<void> {
  if (data instanceof Float32Array) return await work(data);
  const sum = new Float32Array(data.length);
  widen(data, sum);
  await work(sum);
  narrow(sum, data);
}

/** Up to this size the number of steps counts, above it the bytes. */
const smallBytes = 64 << 10;

const isSmall = (data: Elements) => data.length * 4 <= smallBytes;

/** Every rank gets the sum. */
export async function allReduce(round: Round, data: Elements, reduction: Reduction): Promise<void> {
  if (isSmall(data)) return await asFloat32(data, (sum) => recursiveDoubling(round, sum, reduction));
  const bounds = evenBounds(data.length, round.size);
  const steps = round.size - 1;
  if (data instanceof Float32Array) return await ring(round, data, { bounds, sums: steps, copies: steps, reduction });
  await pairwiseReduceScatter(round, data, bounds, reduction);
  await ring(round, data, { bounds, copies: steps, firstStep: round.size });
}

/** Each rank gets its part of the sum; the other parts of `data` are left undefined. */
export async function reduceScatter(
  round: Round,
  data: Elements,
  bounds: readonly number[],
  reduction: Reduction,
): Promise<void> {
  if (data instanceof Float32Array && !isSmall(data)) {
    await ring(round, data, { bounds, sums: round.size - 1, reduction });
  } else await pairwiseReduceScatter(round, data, bounds, reduction);
}

/** Every rank gets all parts; its own is in place. */
export async function allGather(round: Round, data: Elements, bounds: readonly number[]): Promise<void> {
  if (data.byteLength <= smallBytes) await directAllGather(round, data, bounds);
  else await ring(round, data, { bounds, copies: round.size - 1 });
}

/**
 * The root gets all parts, each straight from its rank; its own is in place. It sends nothing of what comes after in its
 * line before it has them.
 */
export async function gather(round: Round, data: Elements, bounds: readonly number[], root: number): Promise<void> {
  const { size, index, line } = round, chunk = (i: number) => part(data, bounds[i]!, bounds[i + 1]!);
  const others = Array.from({ length: size - 1 }, (_, i) => wrap(root + 1 + i, size));
  const received = index === root ? others.map((other) => round.receive(other, 0, chunk(other))) : [];
  line.posted();
  await Promise.all(received);
  await line.maySend;
  if (index !== root) await round.send(root, 0, chunk(index));
  line.sent();
}

/** A binomial tree; large data is scattered, then gathered, so that the root sends it once and not log₂(n) times. */
export async function broadcast(round: Round, data: Elements, root: number): Promise<void> {
  await round.line.turn;
  const { size, index } = round;
  if (size > 2 && data.byteLength > maxBodyBytes) {
    const bounds = evenBounds(data.length, size), chunk = (i: number) => part(data, bounds[i]!, bounds[i + 1]!);
    if (index === root) {
      const others = Array.from({ length: size - 1 }, (_, i) => wrap(root + 1 + i, size));
      await Promise.all(others.map((other) => round.send(other, 0, chunk(other))));
    } else await round.receive(root, 0, chunk(index));
    return await ring(round, data, { bounds, copies: size - 1, firstStep: 1 });
  }
  const place = wrap(index - root, size), at = (relative: number) => wrap(relative + root, size);
  let mask = 1;
  while (mask < size && (place & mask) === 0) mask *= 2;
  if (place !== 0) await round.receive(at(place - mask), 0, data);
  for (mask /= 2; mask >= 1; mask /= 2) {
    if (place + mask < size) await round.send(at(place + mask), 0, data);
  }
}

/** The root gets the sum; `data` of the others is left undefined. */
export async function reduce(round: Round, data: Elements, root: number, reduction: Reduction): Promise<void> {
  await round.line.turn;
  const { size, index } = round;
  if (!isSmall(data)) {
    const bounds = evenBounds(data.length, size), chunk = (i: number) => part(data, bounds[i]!, bounds[i + 1]!);
    // More is sent and asked for afterwards.
    await reduceScatter({ ...round, line: { ...round.line, posted() {}, sent() {} } }, data, bounds, reduction);
    if (index !== root) return await round.send(root, size, chunk(index));
    const others = Array.from({ length: size - 1 }, (_, i) => wrap(root + 1 + i, size));
    await Promise.all(others.map((other) => round.receive(other, size, chunk(other))));
    return;
  }
  await asFloat32(data, async (sum) => {
    const place = wrap(index - root, size), at = (relative: number) => wrap(relative + root, size);
    const other = new Float32Array(sum.length);
    for (let mask = 1; mask < size; mask *= 2) {
      if ((place & mask) !== 0) return await round.send(at(place - mask), 0, sum);
      if (place + mask >= size) continue;
      await round.receive(at(place + mask), 0, other);
      accumulate(sum, other, reduction);
    }
  });
}

/** Part i of `from` goes to rank i; part j of `into` comes from rank j. Parts may be empty. */
export async function allToAll(
  round: Round,
  { from, fromBounds, into, intoBounds }: {
    from: Elements;
    fromBounds: readonly number[];
    into: Elements;
    intoBounds: readonly number[];
  },
): Promise<void> {
  await round.line.turn;
  const { size, index } = round;
  const out = (i: number) => part(from, fromBounds[i]!, fromBounds[i + 1]!);
  const into1 = (i: number) => part(into, intoBounds[i]!, intoBounds[i + 1]!);
  into1(index).set(out(index));
  const others = Array.from({ length: size - 1 }, (_, i) => i + 1);
  await Promise.all([
    ...others.map((step) => round.receive(wrap(index - step, size), 0, into1(wrap(index - step, size)))),
    ...others.map((step) => round.send(wrap(index + step, size), 0, out(wrap(index + step, size)))),
  ]);
}
