/**
 * Gradients on their way while the rest is computed (`overlap_sync_grad`): the last backward pass of a step is cut where a
 * bucket is done. At each cut its gradients are read back, and travel while the device goes on with the next piece. The
 * buckets and the order of sums are those of a step without it, so that it changes no bit.
 */
import { lastTouches } from "../graph/gradient_order.ts";
import type { Plan, SegmentName } from "../graph/plan.ts";
import type { Wait } from "../graph/program.ts";
import type { ReadTicket } from "../backend/backend.ts";
import type { Synchronizer } from "./synchronize.ts";
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
  #read: { readonly synchronizer: Synchronizer; readonly bucket: Parcel; readonly ticket: ReadTicket } | undefined;

  constructor(readonly plan: OverlapPlan, readonly synchronizers: readonly Synchronizer[]) {}

  /** At cut number `index`: the piece before it is submitted. */
  *at(index: number): Generator<Wait, void> {
    const { group, bucket } = this.plan.buckets[index]!, synchronizer = this.synchronizers[group]!;
    this.#send(); // the device has work meanwhile: the piece that was submitted after the cut before
    const ticket = synchronizer.read(bucket);
    yield ticket;
    this.#read = { synchronizer, bucket, ticket };
  }

  /** After the pass: the last bucket leaves too. What is under way is the synchronizers' to finish. */
  end(): void {
    this.#send();
  }

  #send(): void {
    if (this.#read) this.#read.synchronizer.start(this.#read.bucket, this.#read.ticket);
    this.#read = undefined;
  }
}
