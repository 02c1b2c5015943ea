/**
 * What travels while the device computes. Gradients (`overlap_sync_grad`): the last backward pass of a step is cut where a
 * bucket is done. At each cut its gradients are read back, and travel while the device goes on with the next piece.
 * Parameters (`overlap_sync_param`): they leave after the update, and the next step's first forward pass is cut where those
 * of a gather are read for the first time; it waits there for no others.
 *
 * Buckets, gathers and the order of sums are those of a step without it, so that it changes no bit.
 */
import { firstReads, lastTouches } from "../graph/gradient_order.ts";
import type { Plan, SegmentName } from "../graph/plan.ts";
import type { Wait } from "../graph/program.ts";
import type { Reading, Synchronizer } from "./synchronize.ts";
import type { Parcel, ZeroPlan } from "./zero.ts";

export interface OverlapPlan {
  readonly segment: SegmentName;
  /** Instructions of the segment after which a bucket is done, in order; two may be done at once. */
  readonly cuts: readonly number[];
  /** What is done there: a bucket of one of the groups of parameters. */
  readonly buckets: readonly GroupBucket[];
  /** Buckets with gradients of which other stages have terms: they leave once those are added. */
  readonly late: readonly GroupBucket[];
}

interface GroupBucket {
  readonly group: number;
  readonly bucket: Parcel;
}

/**
 * @param plan of a rank whose backward passes are whole. Of several chunks the first is the last to go backward: the
 * gradients of the others are done when it begins
 * @param shared parameters that other stages hold too
 */
export function planOverlap(
  plan: Pick<Plan, "segments" | "parameters">,
  zero: readonly ZeroPlan[],
  shared: ReadonlySet<string>,
): OverlapPlan {
  const segment: SegmentName = "backward 0", touched = lastTouches(plan, segment);
  const all = zero.flatMap(({ buckets }, group) => buckets.map((bucket): GroupBucket => ({ group, bucket })));
  const isLate = ({ bucket }: GroupBucket) => bucket.parts.some(({ name }) => shared.has(name));
  const done = all.filter((each) => !isLate(each)).map((each) => ({
    ...each,
    cut: Math.max(0, ...each.bucket.parts.map(({ name }) => touched.get(name) ?? 0)),
  })).sort((a, b) => a.cut - b.cut);
  return { segment, cuts: done.map(({ cut }) => cut), buckets: done, late: all.filter(isLate) };
}

/** The reductions of one step's last backward pass. */
export class OverlappedReduction {
  #read: { readonly synchronizer: Synchronizer; readonly reading: Reading } | undefined;

  /** @param inThread whether the device computes in this thread: then nothing goes on while bytes are copied out */
  constructor(
    readonly plan: OverlapPlan,
    readonly synchronizers: readonly Synchronizer[],
    readonly inThread: boolean,
  ) {}

  /** At cut number `index`: the piece before it is submitted. */
  *at(index: number): Generator<Wait, void> {
    const { group, bucket } = this.plan.buckets[index]!, synchronizer = this.synchronizers[group]!;
    yield* this.#send(); // the device has work meanwhile: the piece that was submitted after the cut before
    const reading = synchronizer.read(bucket);
    yield reading;
    this.#read = { synchronizer, reading };
    if (this.inThread) yield* this.#send();
  }

  /** After the pass: the last bucket leaves too. What is under way is the synchronizers' to finish. */
  *end(): Generator<Wait, void> {
    yield* this.#send();
  }

  /** After gradients of several stages are added: those leave too. */
  *late(): Generator<Wait, void> {
    for (const { group, bucket } of this.plan.late) {
      const synchronizer = this.synchronizers[group]!, reading = synchronizer.read(bucket);
      yield reading;
      synchronizer.start(reading);
    }
  }

  *#send(): Generator<Wait, void> {
    if (!this.#read) return;
    this.#read.synchronizer.start(this.#read.reading);
    this.#read = undefined;
    yield turn;
  }
}

/** A turn of the event loop, in which messages to and from other threads leave and come: the next wait may block them. */
const turn: Wait = { ready: () => new Promise((resolve) => setImmediate(resolve)) };

export interface GatherOverlapPlan {
  readonly segment: SegmentName;
  /** Instructions of the segment before which parameters are read that a gather brings, less one: where it is cut. */
  readonly cuts: readonly number[];
  /** The group of parameters whose next gather is waited for at each cut. */
  readonly groups: readonly number[];
  /** The same before the first instruction. */
  readonly before: readonly number[];
}

/**
 * @param plan of a rank whose forward pass is one segment
 * @returns nothing where the pass itself gathers weights: their mirror on the host must be whole before it begins
 */
export function planGatherOverlap(
  plan: Pick<Plan, "segments" | "parameters">,
  zero: readonly ZeroPlan[],
): GatherOverlapPlan | undefined {
  const segment: SegmentName = "forward 0", { instructions } = plan.segments[segment];
  const gathersWeights = instructions.some((each) =>
    each.kind === "collective" && (each.source.space === "parameter" || each.source.space === "model")
  );
  if (gathersWeights) return undefined;
  const read = firstReads(plan, segment), last = instructions.length;
  const waits = zero.flatMap(({ gathers }, group) => {
    const needed = gathers.map(({ parts }) => Math.min(...parts.map(({ name }) => read.get(name) ?? last)) - 1);
    // They come in their order: one is waited for no later than those behind it.
    for (let i = needed.length - 2; i >= 0; i--) needed[i] = Math.min(needed[i]!, needed[i + 1]!);
    return needed.map((cut) => ({ cut, group }));
  }).sort((a, b) => a.cut - b.cut);
  const cut = waits.filter(({ cut }) => cut >= 0);
  return {
    segment,
    cuts: cut.map(({ cut }) => Math.min(cut, last - 1)),
    groups: cut.map(({ group }) => group),
    before: waits.filter(({ cut }) => cut < 0).map(({ group }) => group),
  };
}
