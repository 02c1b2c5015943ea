/**
 * What it takes that ranks with other data have the same gradients and parameters: the phases of
 * `src/optimizer/synchronize.ts` and `overlap.ts`, in the order in which they do them.
 */
import type { Plan } from "../graph/plan.ts";
import type { OverlapPlan } from "../optimizer/overlap.ts";
import type { OwnedPart, Parcel, ZeroPlan } from "../optimizer/zero.ts";
import type { Mesh } from "../parallel/mesh.ts";
import type { Charges } from "./charge.ts";
import { RankClock } from "./rank_clock.ts";

export interface SyncCharge {
  /** Seconds that gradients add to a step, and parameters. */
  readonly gradients: number;
  readonly parameters: number;
  /** Bytes that this rank sends for them. */
  readonly sent: number;
}

const bytesOf = (parts: readonly OwnedPart[]) => parts.reduce((sum, { begin, end }) => sum + 4 * (end - begin), 0);
const ofOwner = ({ parts }: Parcel, owner: number) => bytesOf(parts.filter((part) => part.owner === owner));

/**
 * @param overlap where the last backward pass is cut to send gradients meanwhile
 * @returns zeros where there is nobody to share with
 */
export function chargeSync(
  { plan, zero, overlap, mesh, charges }: {
    readonly plan: Pick<Plan, "segments">;
    readonly zero: readonly ZeroPlan[];
    readonly overlap: OverlapPlan | undefined;
    readonly mesh: Mesh;
    readonly charges: Charges;
  },
): SyncCharge {
  const { read, upload, collective, ways } = charges, clock = new RankClock();
  let sent = 0, alone = 0;

  const sums = zero.map(({ reduce, partition }) => {
    const toOwners = mesh.size(partition) === mesh.size(reduce);
    return {
      operator: toOwners ? "reduce-scatter" as const : "all-reduce" as const,
      reduce,
      own: mesh.index(partition),
    };
  });
  const started: { readonly bucket: Parcel; readonly own: number; readonly arrival: number }[] = [];
  /** Begins the sum of a bucket that was read. */
  const start = (bucket: Parcel, group: number) => {
    const { operator, reduce, own } = sums[group]!, size = mesh.size(reduce), bytes = 4 * bucket.elements;
    const counts = operator === "reduce-scatter" ? bucket.counts.map((count) => 4 * count) : undefined;
    started.push({ bucket, own, arrival: clock.collective(collective(operator, reduce, bytes, counts)) });
    sent += (operator === "all-reduce" ? 2 : 1) * bytes * (size - 1) / size;
  };
  /** Waits for the first of those under way and puts what this rank owns of it in its place. */
  const finishFirst = () => {
    const { bucket, own, arrival } = started.shift()!;
    clock.wait(arrival);
    clock.work(upload(ofOwner(bucket, own)));
  };
  const finish = () => {
    while (started.length > 0) finishFirst();
  };

  if (overlap) {
    const { instructions } = plan.segments[overlap.segment];
    let from = 0, waiting: (typeof overlap.buckets)[number] | undefined;
    const run = (end: number) => {
      const { device } = charges.segment({
        ...plan.segments[overlap.segment],
        instructions: instructions.slice(from, end),
      });
      clock.queue(charges.turns * device);
      alone += charges.turns * device;
      from = end;
    };
    overlap.cuts.forEach((cut, index) => {
      if (cut + 1 > from) run(cut + 1);
      if (waiting) start(waiting.bucket, waiting.group);
      waiting = overlap.buckets[index]!;
      clock.readBack(read(4 * waiting.bucket.elements));
    });
    if (from < instructions.length) run(instructions.length);
    if (waiting) start(waiting.bucket, waiting.group);
    finish();
  } else {
    zero.forEach(({ reduce, buckets }, group) => {
      if (mesh.size(reduce) === 1) return;
      for (const bucket of buckets) {
        clock.work(read(4 * bucket.elements));
        start(bucket, group);
        if (started.length >= ways.travelling) finishFirst();
      }
      finish();
    });
  }

  // Begun after the update, by all ranks at once; a gather is done when the last owner has brought its part.
  const after = new RankClock();
  for (const { partition, gathers } of zero) {
    const owners = mesh.size(partition), own = mesh.index(partition);
    if (owners === 1) continue;
    const begun: { readonly parcel: Parcel; readonly arrival: number }[] = [];
    const finishFirst = () => {
      const { parcel, arrival } = begun.shift()!;
      after.wait(arrival);
      after.work(upload(4 * parcel.elements - ofOwner(parcel, own)));
    };
    for (const parcel of gathers) {
      const counts = parcel.counts.map((count) => 4 * count), bytes = 4 * parcel.elements;
      after.work(read(Math.max(...counts)));
      sent += bytes * (owners - 1) / owners;
      begun.push({ parcel, arrival: after.collective(collective("all-gather", partition, bytes, counts)) });
      if (begun.length >= ways.travelling) finishFirst();
    }
    while (begun.length > 0) finishFirst();
  }
  return { gradients: clock.now - alone, parameters: after.now, sent };
}
