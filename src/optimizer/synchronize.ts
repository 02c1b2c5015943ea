/**
 * What data-parallel ranks do for each other: gradients are summed bucket by bucket, to all ranks or, where the optimizer's
 * state is divided, to those that update them; updated parameters are handed round. Bytes go through host memory: read
 * back, one collective, upload. Reading one bucket goes on while the one before it travels.
 */
import type { Range, ReadTicket } from "../backend/backend.ts";
import type { Group } from "../comm/collectives/communicator.ts";
import type { ArenaKind, Program, Wait } from "../graph/program.ts";
import type { OwnedPart, Parcel } from "./zero.ts";

export interface SynchronizeOptions {
  readonly program: Program;
  /** Ranks with the same parameters and other data. */
  readonly data: Group;
  /** Ranks among them that divide the optimizer's state. */
  readonly zero: Group;
  readonly buckets: readonly Parcel[];
  readonly gathers: readonly Parcel[];
}

/** A parcel's parts as few ranges of an arena: neighbours are one. */
function rangesOf(program: Program, kind: ArenaKind, parts: readonly OwnedPart[]): Range[] {
  const ranges: Range[] = [];
  for (const part of parts) {
    const range = program.partRange(kind, part), last = ranges.at(-1);
    if (last && last.buffer === range.buffer && last.offset + last.bytes === range.offset) {
      ranges[ranges.length - 1] = { ...last, bytes: last.bytes + range.bytes };
    } else ranges.push(range);
  }
  return ranges;
}

/** Copies what was read to `into`, from `at` on. */
function fill(into: Float32Array, at: number, read: readonly Uint8Array<ArrayBuffer>[]): void {
  for (const bytes of read) {
    into.set(new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4), at);
    at += bytes.byteLength / 4;
  }
}

interface Travelling {
  readonly parcel: Parcel;
  readonly data: Float32Array;
  readonly arrived: Promise<unknown>;
}

export class Synchronizer {
  readonly #options: SynchronizeOptions;
  /** Host memory of each parcel, from step to step; shared, so that a communicator in a worker can use it. */
  readonly #memory = new Map<Parcel, Float32Array>();
  /** Gradients under way. */
  readonly #reducing: Travelling[] = [];
  /** Whether parameters were updated here that others have not got yet. */
  #stale = false;

  constructor(options: SynchronizeOptions) {
    this.#options = options;
  }

  get buckets(): readonly Parcel[] {
    return this.#options.buckets;
  }

  /** Whether there is anyone to sum gradients with. */
  get reduces(): boolean {
    return this.#options.data.ranks.length > 1;
  }

  /** Sums all gradients, in place. */
  *reduce(): Generator<Wait, void> {
    if (!this.reduces) return;
    for (const bucket of this.buckets) {
      const ticket = this.read(bucket);
      yield ticket;
      this.start(bucket, ticket);
    }
    yield* this.finish();
  }

  /** Starts reading a bucket's gradients as they are after all that was submitted. */
  read(bucket: Parcel): ReadTicket {
    const { program } = this.#options;
    return program.backend.read(rangesOf(program, "gradient", bucket.parts));
  }

  /** Starts the sum of a bucket that was read. */
  start(bucket: Parcel, ticket: ReadTicket): void {
    const { data: group, zero } = this.#options;
    const data = this.#room(bucket);
    fill(data, 0, ticket.take());
    const toOwners = zero.ranks.length === group.ranks.length;
    const arrived = toOwners ? group.reduceScatter(data, bucket.counts) : group.allReduce(data);
    arrived.catch(() => {}); // told to whoever waits
    this.#reducing.push({ parcel: bucket, data, arrived });
  }

  /** Waits for the sums under way and puts those that this rank needs back in their places. */
  *finish(): Generator<Wait, void> {
    const { zero } = this.#options;
    for (const { parcel, data, arrived } of this.#reducing.splice(0)) {
      yield { ready: () => arrived };
      this.#put("gradient", parcel, data, (owner) => owner === zero.index);
    }
  }

  /** Parameters were updated: those of the other ranks are to be fetched before they are used. */
  updated(): void {
    this.#stale = this.#options.zero.ranks.length > 1;
  }

  /** Fetches what other ranks have updated, and hands round what this one has. */
  *gather(): Generator<Wait, void> {
    if (!this.#stale) return;
    this.#stale = false;
    const { program, zero, gathers } = this.#options;
    const travelling: Travelling[] = [];
    for (const parcel of gathers) {
      const own = parcel.parts.filter(({ owner }) => owner === zero.index);
      const ticket = program.backend.read(rangesOf(program, "parameter", own));
      yield ticket;
      const data = this.#room(parcel);
      fill(data, parcel.counts.slice(0, zero.index).reduce((sum, count) => sum + count, 0), ticket.take());
      const arrived = zero.allGather(data, parcel.counts);
      arrived.catch(() => {});
      travelling.push({ parcel, data, arrived });
    }
    for (const { parcel, data, arrived } of travelling) {
      yield { ready: () => arrived };
      this.#put("parameter", parcel, data, (owner) => owner !== zero.index);
    }
  }

  #room(parcel: Parcel): Float32Array {
    let room = this.#memory.get(parcel);
    if (!room) this.#memory.set(parcel, room = new Float32Array(new SharedArrayBuffer(4 * parcel.elements)));
    return room;
  }

  /** Uploads the parts of those owners. */
  #put(kind: ArenaKind, { parts }: Parcel, data: Float32Array, wanted: (owner: number) => boolean): void {
    const { program } = this.#options;
    let at = 0;
    for (const part of parts) {
      const length = part.end - part.begin;
      if (wanted(part.owner)) program.writePart(kind, part, data.subarray(at, at + length));
      at += length;
    }
  }
}
