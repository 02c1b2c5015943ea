/**
 * What it takes that ranks with other data have the same gradients and parameters: the phases of
 * `src/optimizer/synchronize.ts` and `overlap.ts`, in the order in which they do them.
 */
import type { Plan, Segment } from "../graph/plan.ts";
import type { GatherOverlapPlan, OverlapPlan } from "../optimizer/overlap.ts";
import { type Gather, type Parcel, partBytes, type ZeroPlan } from "../optimizer/zero.ts";
import { mostTravelling } from "../optimizer/synchronize.ts";
import type { Mesh, Mode } from "../parallel/mesh.ts";
import { type Charges, wireBytes } from "./charge.ts";
import { RankClock } from "./rank_clock.ts";

export interface SyncCharge {
  /** Seconds that gradients add to a step, and parameters. */
  readonly gradients: number;
  readonly parameters: number;
  /** Bytes that this rank sends for them. */
  readonly sent: number;
}

const isHalf = (parcel: Parcel | Gather) => "half" in parcel && parcel.half;
const ofOwner = (parcel: Parcel, owner: number) =>
  parcel.parts.reduce((sum, part) => part.owner === owner ? sum + partBytes(part, isHalf(parcel)) : sum, 0);

/** What is planned of a rank, as `planModel` gives it. */
interface Planned {
  readonly plan: Pick<Plan, "segments">;
  readonly zero: readonly ZeroPlan[];
  /** Where the last backward pass is cut to send gradients meanwhile. */
  readonly overlap: OverlapPlan | undefined;
  /** Where the first forward pass is cut to wait for parameters. */
  readonly gatherOverlap: GatherOverlapPlan | undefined;
  readonly mesh: Mesh;
  readonly charges: Charges;
}

/** A segment that goes on the device piece by piece. */
class CutPass {
  /** Seconds that it takes by itself, so far. */
  alone = 0;
  #from = 0;
  constructor(readonly segment: Segment, readonly charges: Charges, readonly clock: RankClock) {}

  /** Queues what is left before instruction `end`. */
  run(end = this.segment.instructions.length): void {
    if (end <= this.#from) return;
    const instructions = this.segment.instructions.slice(this.#from, end);
    const seconds = this.charges.turnsAtEnds * this.charges.segment({ ...this.segment, instructions }).device;
    this.clock.queue(seconds);
    this.alone += seconds;
    this.#from = end;
  }
}

/** Parcels that go round a group, first come first served. */
class Travelling {
  sent = 0;
  readonly #begun: { readonly arrival: number; readonly comes: number }[] = [];
  constructor(readonly charges: Charges, readonly mesh: Mesh, readonly clock: RankClock) {}

  get count(): number {
    return this.#begun.length;
  }

  begin(
    operator: "all-reduce" | "reduce-scatter" | "all-gather",
    mode: Mode,
    parcel: Parcel,
    comes: number,
    wire?: ZeroPlan["wire"],
  ) {
    const scale = wire ? 1 / 2 : 1,
      each = parcel.counts.map((_, owner) => scale * ofOwner(parcel, owner)),
      bytes = each.reduce((sum, part) => sum + part, 0);
    const parts = operator === "all-reduce" ? undefined : each;
    const arrival = this.clock.collective(this.charges.collective(operator, mode, bytes, parts));
    this.#begun.push({ arrival, comes });
    this.sent += wireBytes(operator, this.mesh.size(mode), bytes);
  }

  /** Waits for the first one and puts in its place what of it this rank needs. */
  finishFirst(): void {
    const first = this.#begun.shift();
    if (!first) return;
    this.clock.wait(first.arrival);
    this.clock.work(this.charges.upload(first.comes));
  }
  finish(): void {
    while (this.#begun.length > 0) this.finishFirst();
  }
}

/** After or during the last backward pass. */
function chargeReduction({ plan, zero, overlap, mesh, charges }: Planned) {
  const clock = new RankClock(), travelling = new Travelling(charges, mesh, clock), { read } = charges;
  const start = (bucket: Parcel, { reduce, partition, wire }: ZeroPlan) => {
    const operator = mesh.size(partition) === mesh.size(reduce) ? "reduce-scatter" : "all-reduce";
    travelling.begin(operator, reduce, bucket, ofOwner(bucket, mesh.index(partition)), wire);
  };
  if (!overlap) {
    for (const way of zero) {
      if (mesh.size(way.reduce) === 1) continue;
      for (const bucket of way.buckets) {
        clock.readBack(read(4 * bucket.elements));
        start(bucket, way);
        if (travelling.count >= mostTravelling) travelling.finishFirst();
      }
      travelling.finish();
    }
    return { seconds: clock.now, sent: travelling.sent };
  }
  const pass = new CutPass(plan.segments[overlap.segment], charges, clock);
  let last: (typeof overlap.buckets)[number] | undefined;
  const startLast = () => last && start(last.bucket, zero[last.group]!);
  overlap.cuts.forEach((cut, index) => {
    pass.run(cut + 1);
    startLast(); // the device has work meanwhile
    last = overlap.buckets[index]!;
    clock.readBack(read(4 * last.bucket.elements));
  });
  pass.run();
  startLast();
  for (const { bucket, group } of overlap.late) {
    clock.readBack(read(4 * bucket.elements));
    start(bucket, zero[group]!);
  }
  travelling.finish();
  return { seconds: clock.now - pass.alone, sent: travelling.sent };
}

/** After the update, or from there on into the next step's first forward pass. */
function chargeGathers({ plan, zero, gatherOverlap, mesh, charges }: Planned) {
  const clock = new RankClock(), { read } = charges;
  const all = zero.map(({ partition, gathers }) => {
    const travelling = new Travelling(charges, mesh, clock), own = mesh.index(partition);
    if (mesh.size(partition) === 1) return travelling;
    for (const parcel of gathers) {
      // Ranks begin together: it is under way when the one with most of it has brought that.
      const each = parcel.counts.map((_, owner) => ofOwner(parcel, owner));
      clock.readBack(read(Math.max(...each)));
      travelling.begin("all-gather", partition, parcel, each.reduce((sum, part) => sum + part, 0) - each[own]!);
      if (!gatherOverlap && travelling.count >= mostTravelling) travelling.finishFirst();
    }
    if (!gatherOverlap) travelling.finish();
    return travelling;
  });
  const sent = all.reduce((total, travelling) => total + travelling.sent, 0);
  if (!gatherOverlap) return { seconds: clock.now, sent };
  let alone = 0;
  for (const group of gatherOverlap.before) all[group]!.finishFirst();
  for (const [segment, { cuts, groups }] of gatherOverlap.passes) {
    const pass = new CutPass(plan.segments[segment], charges, clock);
    cuts.forEach((cut, index) => {
      pass.run(cut + 1);
      all[groups[index]!]!.finishFirst();
    });
    pass.run();
    alone += pass.alone;
  }
  return { seconds: clock.now - alone, sent };
}

/** @returns zeros where there is nobody to share with */
export function chargeSync(planned: Planned): SyncCharge {
  const gradients = chargeReduction(planned), parameters = chargeGathers(planned);
  return { gradients: gradients.seconds, parameters: parameters.seconds, sent: gradients.sent + parameters.sent };
}
