/**
 * What data-parallel ranks do for each other: gradients are summed bucket by bucket, to all ranks or, where the optimizer's
 * state is divided, to those that update them; updated parameters are handed round. Bytes go through host memory: read
 * back, one collective, upload. While one parcel travels, the one after it is read back, and the one before it uploaded.
 */
import type { Backend, Range, ReadTicket } from "../backend/backend.ts";
import type { Group } from "../comm/collectives/communicator.ts";
import { type HalfElements, narrowInPlace, widenInPlace } from "../comm/collectives/elements.ts";
import { vectorMemory } from "../comm/collectives/vector_sum.ts";
import { messagesLeave, type Program, type Wait } from "../graph/program.ts";
import type { SpanSink } from "../observe/trace.ts";
import { type Gather, type OwnedPart, type Parcel, partBytes } from "./zero.ts";

export interface SynchronizeOptions {
  readonly program: Pick<Program, "partRange" | "storedRange" | "writeStored"> & {
    readonly backend: Pick<Backend, "readInto" | "upload">;
  };
  /** Ranks with the same parameters and other data. */
  readonly data: Group;
  /** Ranks among them that divide the optimizer's state. */
  readonly zero: Group;
  readonly buckets: readonly Parcel[];
  readonly gathers: readonly Gather[];
  /** As what gradients travel. @default `float32` */
  readonly wire?: HalfElements;
  /**
   * Whether the zero group's ranks compute one after the other: then what the first one needs goes round first, and what
   * the others need while it computes. Asked before each round of gathers; all ranks must say the same. @default never
   */
  readonly inTurn?: () => boolean;
}

/** A parcel's parts as few ranges of an arena: neighbours are one. */
function rangesOf(parts: readonly OwnedPart[], rangeOf: (part: OwnedPart) => Range): Range[] {
  const ranges: Range[] = [];
  for (const part of parts) {
    const range = rangeOf(part), last = ranges.at(-1);
    if (last && last.buffer === range.buffer && last.offset + last.bytes === range.offset) {
      ranges[ranges.length - 1] = { ...last, bytes: last.bytes + range.bytes };
    } else ranges.push(range);
  }
  return ranges;
}

/** Host memory for what travels, shared, so that a communicator in a worker can use it. What is back serves again. */
class Rooms {
  readonly #free: Float32Array[] = [];
  /** All that were made. */
  bytes = 0;

  /** The smallest that fits, cut to measure by the caller. */
  take(elements: number): Float32Array {
    const fitting = this.#free.filter(({ length }) => length >= elements).sort((a, b) => a.length - b.length)[0];
    if (!fitting) {
      this.bytes += 4 * elements;
      return new Float32Array(vectorMemory(4 * elements));
    }
    return this.#free.splice(this.#free.indexOf(fitting), 1)[0]!;
  }
  give(room: Float32Array): void {
    this.#free.push(room);
  }
}

/** A parcel being read back. */
export interface Reading extends Wait {
  readonly parcel: Parcel;
  readonly room: Float32Array;
  readonly ticket: ReadTicket<void>;
}

interface Travelling {
  readonly parcel: Parcel;
  readonly half: boolean;
  readonly room: Float32Array;
  readonly arrived: Promise<unknown>;
  /** What of it goes to others has left; with `arrived` if absent. */
  readonly gone?: Promise<unknown>;
}

/** Updated parameters that go to one rank after the other. */
interface InLine {
  readonly data: Uint8Array;
  readonly counts: readonly number[];
  /** By place of the rank that they go to. */
  readonly gathers: Promise<void>[];
  readonly arrived: PromiseWithResolvers<void>;
  readonly gone: PromiseWithResolvers<unknown>;
}

/** Parcels under way at a time, where none must wait for the device: more would only take memory. */
export const mostTravelling = 3;

export class Synchronizer {
  /** Told of each phase: reading back, waiting for other ranks, uploading. */
  onSpan: SpanSink | undefined;
  readonly #options: SynchronizeOptions;
  readonly #rooms = new Rooms();
  /** Gradients under way, in the order in which they left. */
  readonly #reducing: Travelling[] = [];
  /** Parameters under way. */
  readonly #gathering: Travelling[] = [];
  /** Those of them that have not left for all ranks. */
  readonly #inLine: InLine[] = [];
  /** Rooms from which something still leaves. */
  readonly #leaving = new Set<Promise<unknown>>();
  /** The first gather that was not begun since the last update. */
  #unsent: number;

  constructor(options: SynchronizeOptions) {
    this.#options = options;
    this.#unsent = options.gathers.length;
  }

  get buckets(): readonly Parcel[] {
    return this.#options.buckets;
  }

  /** Host memory that it has taken for what travels. */
  get heldBytes(): number {
    return this.#rooms.bytes;
  }

  /** Whether there is anyone to sum gradients with. */
  get reduces(): boolean {
    return this.#options.data.ranks.length > 1;
  }

  /** Sums all gradients, in place. @param most buckets under way at a time */
  *reduce(most = mostTravelling): Generator<Wait, void> {
    if (!this.reduces) return;
    let before: Reading | undefined;
    for (const bucket of this.buckets) {
      const reading = this.read(bucket); // comes while the one before it is taken
      if (before) yield* this.start(before);
      yield before = reading;
      if (this.#reducing.length >= most - 1) yield* this.#finishReduction();
    }
    if (before) yield* this.start(before);
    yield* this.finish();
  }

  /** Starts reading a bucket's gradients as they are after all that was submitted. */
  read(bucket: Parcel): Reading {
    return this.#read(bucket, 0, rangesOf(bucket.parts, (part) => this.#options.program.partRange("gradient", part)));
  }

  /** Starts the sum of a bucket that was read. */
  *start({ parcel, room, ticket }: Reading): Generator<Wait, void> {
    const { data: group, zero, wire } = this.#options, numbers = room.subarray(0, parcel.elements);
    this.#timed("take", 4 * parcel.elements, () => ticket.take());
    const data = wire ? narrowInPlace(numbers, wire) : numbers;
    const toOwners = zero.ranks.length === group.ranks.length;
    const arrived = toOwners ? group.reduceScatter(data, parcel.counts) : group.allReduce(data);
    arrived.catch(() => {}); // told to whoever waits
    this.#reducing.push({ parcel, half: false, room, arrived });
    yield messagesLeave;
  }

  /** Waits for the sums under way and puts those that this rank needs back in their places. */
  *finish(): Generator<Wait, void> {
    while (this.#reducing.length > 0) yield* this.#finishReduction();
  }

  *#finishReduction(): Generator<Wait, void> {
    const { program, zero, data, wire } = this.#options, travelling = this.#reducing.shift()!;
    yield* this.#arrive("reduce", travelling);
    if (wire) {
      const { room, parcel: { counts, elements } } = travelling, whole = zero.ranks.length < data.ranks.length;
      const begin = whole ? 0 : counts.slice(0, zero.index).reduce((sum, count) => sum + count, 0);
      widenInPlace(room.subarray(0, elements), wire, begin, whole ? elements : begin + counts[zero.index]!);
    }
    this.#put(travelling, (owner) => owner === zero.index, (part, bytes) => {
      program.backend.upload(program.partRange("gradient", part), bytes);
    });
  }

  /** Parameters were updated: those of the other ranks are to be fetched before they are used. */
  updated(): void {
    if (this.#options.zero.ranks.length === 1) return;
    this.#unsent = 0;
  }

  /** Fetches what other ranks have updated, and hands round what this one has. */
  *gather(): Generator<Wait, void> {
    if (this.#options.inTurn?.()) yield* this.startGathers(); // what some wait for leaves after all of the others'
    while (this.#unsent < this.#options.gathers.length) {
      yield* this.startGathers(1);
      if (this.#gathering.length >= mostTravelling) yield* this.finishGather();
    }
    while (this.#gathering.length > 0) yield* this.finishGather();
    yield { ready: () => Promise.all(this.#leaving) };
  }

  /** Begins the next gathers, all that are left if not so many; what comes is not waited for. Nothing without an update. */
  *startGathers(most = Infinity): Generator<Wait, void> {
    const { gathers } = this.#options;
    for (let begun = 0; begun < most && this.#unsent < gathers.length; begun++) {
      yield* this.#startGather(gathers[this.#unsent++]!, this.#options.inTurn?.());
    }
    if (this.#unsent === gathers.length) this.#goOn();
  }

  /** What the first rank needs has left: then what the second needs, and so on. */
  #goOn(): void {
    const { zero } = this.#options, line = this.#inLine.splice(0);
    for (let place = 1; place < zero.ranks.length; place++) {
      for (const { data, counts, gathers } of line) {
        const gathered = zero.gather(data, counts, place);
        gathered.catch(() => {});
        gathers.push(gathered);
      }
    }
    for (const { gathers, arrived, gone } of line) {
      arrived.resolve(gathers[zero.index]);
      gone.resolve(Promise.all(gathers));
    }
  }

  *#startGather(parcel: Gather, inTurn = false): Generator<Wait, void> {
    const { zero, program } = this.#options, { half } = parcel;
    const own = parcel.parts.filter(({ owner }) => owner === zero.index);
    const counts = zero.ranks.map((_, index) =>
      parcel.parts.reduce((sum, part) => part.owner === index ? sum + partBytes(part, half) : sum, 0)
    );
    const begin = counts.slice(0, zero.index).reduce((sum, count) => sum + count, 0);
    const ranges = rangesOf(own, (part) => program.storedRange(part));
    const reading = this.#read(parcel, begin, ranges), { room, ticket } = reading;
    yield reading;
    this.#timed("take", counts[zero.index]!, () => ticket.take());
    const data = new Uint8Array(room.buffer, 0, counts.reduce((sum, count) => sum + count, 0));
    if (!inTurn) {
      const arrived = zero.allGather(data, counts);
      arrived.catch(() => {}); // told to whoever waits
      this.#gathering.push({ parcel, half, room, arrived });
      return yield messagesLeave;
    }
    const line: InLine = {
      data,
      counts,
      gathers: [zero.gather(data, counts, 0)],
      arrived: Promise.withResolvers(),
      gone: Promise.withResolvers(),
    };
    for (const promise of [...line.gathers, line.arrived.promise, line.gone.promise]) promise.catch(() => {});
    this.#inLine.push(line);
    const arrived = zero.index === 0 ? line.gathers[0]! : line.arrived.promise;
    this.#gathering.push({ parcel, half, room, arrived, gone: line.gone.promise });
    yield messagesLeave;
  }

  /** Waits for the first of the gathers under way, if there is one, and puts what came in its places. */
  *finishGather(): Generator<Wait, void> {
    const { zero, program } = this.#options, travelling = this.#gathering.shift();
    if (!travelling) return;
    yield* this.#arrive("gather", travelling);
    this.#put(travelling, (owner) => owner !== zero.index, (part, bytes) => program.writeStored(part, bytes));
  }

  /** Starts reading ranges, one after the other, into a room for a parcel from byte `begin` of it on. */
  #read(parcel: Parcel, begin: number, ranges: readonly Range[]): Reading {
    const { program } = this.#options, room = this.#rooms.take(parcel.elements), began = performance.now();
    let at = begin;
    const places = ranges.map(({ bytes }) => new Uint8Array(room.buffer, (at += bytes) - bytes, bytes));
    const ticket = program.backend.readInto(ranges, places);
    const ready = async () => {
      await ticket.ready();
      this.onSpan?.("read-back", began, performance.now(), { args: { bytes: at - begin } });
    };
    return { parcel, room, ticket, ready };
  }

  *#arrive(what: "reduce" | "gather", { parcel, half, arrived }: Travelling): Generator<Wait, void> {
    const began = performance.now(), bytes = parcel.parts.reduce((sum, part) => sum + partBytes(part, half), 0);
    yield { ready: () => arrived };
    this.onSpan?.(`wait for ${what}`, began, performance.now(), { args: { bytes } });
  }

  /** Uploads the parts of those owners, and gives the room back. */
  #put(
    { parcel, half, room, gone }: Travelling,
    wanted: (owner: number) => boolean,
    write: (part: OwnedPart, bytes: Uint8Array) => void,
  ): void {
    const parts = parcel.parts.filter(({ owner }) => wanted(owner));
    this.#timed("upload", parts.reduce((sum, part) => sum + partBytes(part, half), 0), () => {
      let at = 0;
      for (const part of parcel.parts) {
        const bytes = partBytes(part, half);
        if (wanted(part.owner)) write(part, new Uint8Array(room.buffer, at, bytes));
        at += bytes;
      }
    });
    if (!gone) return this.#rooms.give(room);
    this.#leaving.add(gone);
    gone.then(() => {
      this.#leaving.delete(gone);
      this.#rooms.give(room);
    }, () => {}); // told to whoever waits for what leaves
  }

  #timed(name: string, bytes: number, work: () => void): void {
    const began = performance.now();
    work();
    this.onSpan?.(name, began, performance.now(), { args: { bytes } });
  }
}
