/**
 * Gathers of weights that ranks hold parts of. What a rank brings is its own part, which changes once a step: it is read
 * back once, into a mirror on the host, and from there goes into every gather of that step. A gather needs nothing of what
 * the device computes, so it may be begun ahead of need, and travel while the device works.
 *
 * Gathered weights wait in a pool of buffers in shared memory until the device takes them; a buffer of each size serves
 * again and again.
 */
import type { Backend, Range } from "../backend/backend.ts";
import { elementBytes } from "../../kernels/kernel.ts";
import { type CollectiveRanges, type GroupOf, unpack } from "./collect.ts";
import type { Wait } from "./program.ts";

export interface Prefetch {
  /** `layer`: all of a layer's gathers begin together, while the layer before is at work; `module`: each by itself. */
  readonly per: "layer" | "module";
  /** With `layer`: how many of a layer's own gathers are waited for before those of the next begin. */
  readonly after: number;
}

interface Flight {
  readonly area: Uint8Array;
  readonly arrived: Promise<void>;
}

export const isWeightGather = (
  { instruction: { operator, source } }: Pick<CollectiveRanges, "instruction">,
): boolean => operator === "all-gather" && source.space === "parameter";

export class WeightGathers {
  readonly #mirror = new Map<string, { readonly source: Range; readonly bytes: Uint8Array }>();
  readonly #flights = new Map<CollectiveRanges, Flight>();
  readonly #free = new Map<number, Uint8Array[]>();
  #stale = true;

  constructor(readonly backend: Backend, readonly groups: GroupOf | undefined) {}

  /** Declares a gather, before the first step. */
  add({ source }: CollectiveRanges): void {
    const key = keyOf(source);
    if (!this.#mirror.has(key)) {
      this.#mirror.set(key, { source, bytes: new Uint8Array(new SharedArrayBuffer(source.bytes)) });
    }
  }

  /** Parameters were changed: what the host knows of them is old. */
  changed(): void {
    this.#stale = true;
  }

  /** Reads back what this rank brings, where it has changed. */
  *refresh(): Generator<Wait, void> {
    if (!this.#stale || this.#mirror.size === 0) return;
    const mirrors = [...this.#mirror.values()], ticket = this.backend.read(mirrors.map(({ source }) => source));
    yield ticket;
    ticket.take().forEach((bytes, index) => mirrors[index]!.bytes.set(bytes));
    this.#stale = false;
  }

  begin(gather: CollectiveRanges): void {
    if (this.#flights.has(gather)) return;
    const { source, target, instruction: { axis } } = gather, group = this.groups!(axis);
    const area = this.#take(target.bytes);
    area.set(this.#mirror.get(keyOf(source))!.bytes, source.bytes * group.index);
    const arrived = group.allGather(area);
    arrived.catch(() => {}); // told to whoever waits
    this.#flights.set(gather, { area, arrived });
  }

  *finish(gather: CollectiveRanges): Generator<Wait, void> {
    this.begin(gather);
    const { area, arrived } = this.#flights.get(gather)!;
    yield { ready: () => arrived };
    this.#flights.delete(gather);
    const { type, size, into } = gather.instruction, ordered = into!.outer === 1 ? area : this.#take(area.length);
    this.backend.upload(gather.target, unpack(area, ordered, size, elementBytes[type], into!));
    for (const done of new Set([area, ordered])) this.#free.get(done.length)!.push(done);
  }

  #take(bytes: number): Uint8Array {
    if (!this.#free.has(bytes)) this.#free.set(bytes, []);
    return this.#free.get(bytes)!.pop() ?? new Uint8Array(new SharedArrayBuffer(bytes));
  }
}

const keyOf = ({ buffer, offset }: Range) => `${buffer.label} ${offset}`;

/** How far ahead weights are gathered, by the axis that divides them; those of other axes are gathered where they are needed. */
export type Prefetches = Readonly<Record<string, Prefetch>>;

/**
 * Which gathers begin where: before each piece of a segment, by its index.
 *
 * @param gathers indices of the pieces that are gathers, ascending, with their axes and the layers they belong to
 */
export function beginnings(
  gathers: readonly { readonly piece: number; readonly layer: number | undefined; readonly axis: string }[],
  prefetches: Prefetches,
): ReadonlyMap<number, readonly number[]> {
  const begin = new Map<number, number[]>();
  const put = (at: number, piece: number) => begin.set(at, [...begin.get(at) ?? [], piece]);
  for (const [axis, along] of Map.groupBy(gathers, ({ axis }) => axis)) {
    const prefetch = prefetches[axis], groups: number[][] = [];
    let last: number | undefined | null = null;
    for (const { piece, layer } of along) {
      if (prefetch?.per === "layer" && layer === last) groups.at(-1)!.push(piece);
      else groups.push([piece]);
      last = layer;
    }
    groups.forEach((group, index) => {
      const before = groups[index - 1];
      if (!prefetch) put(group[0]!, group[0]!);
      else if (!before) group.forEach((piece) => put(group[0]!, piece));
      else group.forEach((piece) => put(before[Math.min(prefetch.after, before.length) - 1]!, piece));
    });
  }
  return begin;
}
