/**
 * What travels while the device computes. Gradients (`overlap_sync_grad`): the last backward pass of a step is cut where a
 * bucket is done. At each cut its gradients are read back, and travel while the device goes on with the next piece.
 * Parameters (`overlap_sync_param`): they leave after the update, and the next step's first forward pass (of each chunk) is cut
 * where those of a gather are read for the first time; it waits there for no others.
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
    const reading = synchronizer.read(bucket);
    yield* this.#send(); // the device has work meanwhile: the piece that was submitted after the cut before, and this reading
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
      yield* synchronizer.start(reading);
    }
  }

  *#send(): Generator<Wait, void> {
    if (!this.#read) return;
    yield* this.#read.synchronizer.start(this.#read.reading);
    this.#read = undefined;
  }
}

export interface GatherOverlapPlan {
  /** By the forward pass of a chunk, in the order in which its first micro-batch takes them. */
  readonly passes: ReadonlyMap<SegmentName, GatherCuts>;
  /** Groups of parameters of which a gather is waited for before the first instruction. */
  readonly before: readonly number[];
}

interface GatherCuts {
  /** Instructions of the segment before which parameters are read that a gather brings, less one: where it is cut. */
  readonly cuts: readonly number[];
  /** The group of parameters whose next gather is waited for at each cut. */
  readonly groups: readonly number[];
}

/**
 * @param plan of a rank with so many chunks of the model, whose first micro-batch goes forward through one after the other
 * @returns nothing where the passes themselves gather weights: their mirror on the host must be whole before they begin
 */
export function planGatherOverlap(
  plan: Pick<Plan, "segments" | "parameters">,
  zero: readonly ZeroPlan[],
  chunks: number,
): GatherOverlapPlan | undefined {
  let length = 0;
  const passes = Array.from({ length: chunks }, (_, chunk) => {
    const segment: SegmentName = `forward ${chunk}`, { instructions } = plan.segments[segment], begin = length;
    length += instructions.length;
    return { segment, instructions, begin, end: length };
  });
  const gathersWeights = passes.some(({ instructions }) =>
    instructions.some((each) => each.kind === "collective" && each.source.space === "parameter")
  );
  if (gathersWeights) return undefined;
  // Instructions of all passes are counted through. A tied head is read by the first pass that does.
  const read = new Map<string, number>();
  for (const { segment, begin } of passes) {
    for (const [name, index] of firstReads(plan, segment)) if (!read.has(name)) read.set(name, begin + index);
  }
  const waits = zero.flatMap(({ gathers }, group) => {
    const needed = gathers.map(({ parts }) => Math.min(...parts.map(({ name }) => read.get(name) ?? length)) - 1);
    // They come in their order: one is waited for no later than those behind it.
    for (let i = needed.length - 2; i >= 0; i--) needed[i] = Math.min(needed[i]!, needed[i + 1]!);
    return needed.map((cut) => ({ cut, group }));
  }).sort((a, b) => a.cut - b.cut);
  return {
    passes: new Map(passes.map(({ segment, begin, end }) => {
      const here = waits.filter(({ cut }) => begin <= cut && cut < end);
      return [segment, { cuts: here.map(({ cut }) => cut - begin), groups: here.map(({ group }) => group) }];
    })),
    before: waits.filter(({ cut }) => cut < 0).map(({ group }) => group),
  };
}
