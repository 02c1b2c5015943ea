/**
 * Gradients on their way while the rest is computed (`overlap_sync_grad`): the last backward pass of a step is cut where a
 * bucket is done. At each cut its gradients are read back, and travel while the device goes on with the next piece. The
 * buckets and the order of sums are those of a step without it, so that it changes no bit.
 */
import { lastTouches } from "../graph/gradient_order.ts";
import type { Plan, SegmentName } from "../graph/plan.ts";
import type { Wait } from "../graph/program.ts";
import type { Reading, Synchronizer } from "./synchronize.ts";
import type { Parcel, ZeroPlan } from "./zero.ts";

export interface OverlapPlan {
  readonly segment: SegmentName;
  /** Instructions of the segment after which a bucket is done, in order; two may be done at once. */
  readonly cuts: readonly number[];
  /** What is done there: a bucket of one of the groups of parameters. */
  readonly buckets: readonly { readonly group: number; readonly bucket: Parcel }[];
}

/** @param plan of a rank whose backward pass is one segment */
export function planOverlap(plan: Pick<Plan, "segments" | "parameters">, zero: readonly ZeroPlan[]): OverlapPlan {
  const segment: SegmentName = "backward 0", touched = lastTouches(plan, segment);
  const done = zero.flatMap(({ buckets }, group) =>
    buckets.map((bucket) => ({
      group,
      bucket,
      cut: Math.max(0, ...bucket.parts.map(({ name }) => touched.get(name) ?? 0)),
    }))
  ).sort((a, b) => a.cut - b.cut);
  return { segment, cuts: done.map(({ cut }) => cut), buckets: done };
}

/** The reductions of one step's last backward pass. */
export class OverlappedReduction {
  #read: { readonly synchronizer: Synchronizer; readonly reading: Reading } | undefined;

  constructor(readonly plan: OverlapPlan, readonly synchronizers: readonly Synchronizer[]) {}

  /** At cut number `index`: the piece before it is submitted. */
  *at(index: number): Generator<Wait, void> {
    const { group, bucket } = this.plan.buckets[index]!, synchronizer = this.synchronizers[group]!;
    yield* this.#send(); // the device has work meanwhile: the piece that was submitted after the cut before
    const reading = synchronizer.read(bucket);
    yield reading;
    this.#read = { synchronizer, reading };
  }

  /** After the pass: the last bucket leaves too. What is under way is the synchronizers' to finish. */
  *end(): Generator<Wait, void> {
    yield* this.#send();
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
