/**
 * Collectives of a program: read back, pack into staging, meet the other ranks, unpack, upload. Staging is allocated once,
 * in shared memory, so that a communicator in a worker can use it.
 */
import type { Backend, Range } from "../backend/backend.ts";
import type { Group } from "../comm/collectives/communicator.ts";
import { elementBytes, type ElementType } from "../../kernels/kernel.ts";
import type { Collective, Strips } from "./graph.ts";
import { move, routesOf } from "./exchange.ts";
import type { CollectiveInstruction, Plan } from "./plan.ts";
import type { Wait } from "./program.ts";

/** The ranks along an axis; this floor knows axes by name only. */
export type GroupOf = (axis: string) => Group;

/** What collectives of one kind along one axis moved. */
export interface Traffic {
  readonly axis: string;
  readonly operator: Collective["operator"];
  readonly count: number;
  /** Of the whole tensors: sums, or all parts together. What a link carries follows from it and the axis' size. */
  readonly bytes: number;
}

/** A collective of a program, with its places on the device. */
export interface CollectiveRanges {
  readonly instruction: CollectiveInstruction;
  readonly source: Range;
  readonly target: Range;
  readonly counts: readonly Range[];
}

const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
const wholeWords = (bytes: number): number => Math.ceil(bytes / 4) * 4;
const wholeBytes = ({ source, target }: CollectiveInstruction): number => Math.max(source.bytes, target.bytes);

export class Collector {
  readonly #traffic = new Map<
    string,
    { axis: string; operator: Collective["operator"]; count: number; bytes: number }
  >();
  /** What goes and what comes, one after the other. */
  readonly #staging: SharedArrayBuffer;
  readonly #half: number;
  /** What exchanges of the present segment counted, by number. */
  readonly #tallies = new Map<number, readonly [Uint32Array, Uint32Array]>();

  constructor(readonly backend: Backend, plan: Plan, readonly groups: GroupOf | undefined) {
    const collectives = Object.values(plan.segments)
      .flatMap(({ instructions }) => instructions.filter((instruction) => instruction.kind === "collective"));
    if (collectives.length > 0 && !groups) throw new TypeError("Cannot make a program with collectives without groups");
    this.#half = Math.max(0, ...collectives.map((instruction) => Math.ceil(wholeBytes(instruction) / 16) * 16));
    this.#staging = new SharedArrayBuffer(2 * this.#half);
  }

  get traffic(): readonly Traffic[] {
    return [...this.#traffic.values()].map((entry) => ({ ...entry }));
  }

  *run({ instruction, source, target, counts }: CollectiveRanges): Generator<Wait, void> {
    if (instruction.operator === "exchange") return yield* this.#exchange(instruction, source, target, counts);
    const { operator, axis, size, type, reduction = "sum", from, into } = instruction;
    const group = this.groups!(axis), bytes = wholeBytes(instruction);
    const going = new Uint8Array(this.#staging, 0, bytes), coming = new Uint8Array(this.#staging, this.#half, bytes);
    // Read to where it leaves from; what must be packed first waits where nothing has come yet.
    const place = operator === "all-reduce"
      ? going
      : operator === "all-gather"
      ? partOf(going, group.index, size)
      : coming;
    const own = place.subarray(0, source.bytes);
    const ticket = this.backend.readInto([source], [own]);
    yield ticket;
    ticket.take();

    const width = elementBytes[type];
    let result: Uint8Array;
    switch (operator) {
      case "all-reduce":
        yield until(group.allReduce(elements(going, type), reduction));
        result = going;
        break;
      case "reduce-scatter": {
        pack(own, going, size, width, from!);
        yield until(group.reduceScatter(elements(going, type)));
        result = partOf(going, group.index, size);
        break;
      }
      case "all-gather":
        yield until(group.allGather(elements(going, type)));
        result = unpack(going, coming, size, width, into!);
        break;
      case "all-to-all":
        pack(own, going, size, width, from!);
        yield until(group.allToAll(elements(going, type), elements(coming, type)));
        result = unpack(coming, going, size, width, into!);
        break;
      default:
        operator satisfies never;
        throw new TypeError(`unknown collective ${operator}`);
    }
    this.backend.upload(target, result);
    this.count(instruction);
  }

  /**
   * Rows to the ranks of their experts, or back. How many is data: the first exchange of a segment by the same counts reads
   * these beside all that its rows have room for, and it goes to experts, where all of that is rows; those after it know.
   */
  *#exchange(
    instruction: CollectiveInstruction,
    source: Range,
    target: Range,
    counts: readonly Range[],
  ): Generator<Wait, void> {
    const { axis, type, tally, exchange } = instruction, group = this.groups!(axis), bytes = wholeBytes(instruction);
    const going = new Uint8Array(this.#staging, 0, bytes), coming = new Uint8Array(this.#staging, this.#half, bytes);
    const row = exchange!.columns * elementBytes[type];
    let words = tally!.known ? this.#tallies.get(tally!.id) : undefined, read = source.bytes;
    if (words) read = Math.min(read, wholeWords(sum(routesOf(exchange!, words, group).sent) * row));
    const own = coming.subarray(0, read);
    if (!words || read > 0) {
      const counted = words ? [] : counts.map(({ bytes }) => new Uint32Array(bytes / 4));
      const places = [own, ...counted.map(({ buffer }) => new Uint8Array(buffer))];
      const ticket = this.backend.readInto([{ ...source, bytes: read }, ...(words ? [] : counts)], places);
      yield ticket;
      ticket.take();
      words ??= counted as [Uint32Array, Uint32Array];
    }
    this.#tallies.set(tally!.id, words);
    const { sent, received, gather, spread } = routesOf(exchange!, words, group);
    if (gather) move(own, going, gather, row);
    else going.set(own.subarray(0, sum(sent) * row));
    const [out, back] = [going, coming].map((area, index) =>
      elements(area.subarray(0, sum(index === 0 ? sent : received) * row), type)
    ) as [ReturnType<typeof elements>, ReturnType<typeof elements>];
    const perRow = (rows: readonly number[]) => rows.map((count) => count * row / out.BYTES_PER_ELEMENT);
    yield until(group.allToAll(out, back, { from: perRow(sent), into: perRow(received) }));
    const moved = sum(received) * row;
    if (spread) move(coming, going, spread, row);
    // Whole words: what lies behind the last row is nobody's.
    const result = (spread ? going : coming).subarray(0, wholeWords(moved));
    this.count(instruction, Math.max(sum(sent), sum(received)) * row);
    if (result.length > 0) this.backend.upload({ ...target, bytes: result.length }, result);
  }

  /** Counts a collective; of one whose size is data, so many bytes. */
  count(instruction: CollectiveInstruction, bytes = wholeBytes(instruction)): void {
    const { axis, operator } = instruction;
    const key = `${axis} ${operator}`, known = this.#traffic.get(key) ?? { axis, operator, count: 0, bytes: 0 };
    known.count++;
    known.bytes += bytes;
    this.#traffic.set(key, known);
  }
}

const until = (promise: Promise<unknown>): Wait => ({ ready: () => promise });

function elements(bytes: Uint8Array, type: ElementType) {
  const { buffer, byteOffset, byteLength } = bytes;
  switch (type) {
    case "f32":
      return new Float32Array(buffer, byteOffset, byteLength / 4);
    case "f16":
      return new Float16Array(buffer, byteOffset, byteLength / 2);
    case "bf16":
      return new Uint16Array(buffer, byteOffset, byteLength / 2);
    default:
      return bytes; // whole numbers are moved, never summed
  }
}

const partOf = (whole: Uint8Array, index: number, size: number): Uint8Array =>
  whole.subarray(whole.length / size * index, whole.length / size * (index + 1));

/** From `[outer, size, inner]` to `[size, outer, inner]`: parts one after the other. */
function pack(from: Uint8Array, into: Uint8Array, size: number, width: number, { outer, inner }: Strips): void {
  if (outer === 1) return into.set(from);
  const run = inner * width;
  for (let part = 0, at = 0; part < size; part++) {
    for (let o = 0; o < outer; o++, at += run) {
      const begin = (o * size + part) * run;
      into.set(from.subarray(begin, begin + run), at);
    }
  }
}

/** From parts one after the other back; returns where it is: parts by the first dimension are in order already. */
export function unpack(
  from: Uint8Array,
  into: Uint8Array,
  size: number,
  width: number,
  { outer, inner }: Strips,
): Uint8Array {
  if (outer === 1) return from;
  const run = inner * width;
  for (let part = 0, at = 0; part < size; part++) {
    for (let o = 0; o < outer; o++, at += run) into.set(from.subarray(at, at + run), (o * size + part) * run);
  }
  return into;
}
