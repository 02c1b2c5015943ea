/**
 * Hybrid ZeRO, planned: which rank keeps the optimizer's state of what, in which buckets gradients are reduced, and in
 * which gathers updated parameters are handed round. It follows from shapes and the record alone, so that every rank comes
 * to the same plan without a word.
 */
import { isHalf } from "../../kernels/host.ts";
import type { HalfElements } from "../comm/collectives/elements.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import type { ParameterPart } from "../graph/optimizer_state.ts";
import { partElements } from "../graph/optimizer_state.ts";
import type { ParameterPlace } from "../graph/plan.ts";
import type { Mesh, Mode } from "../parallel/mesh.ts";
import { parameterGroups } from "./parameter_groups.ts";
import { partitionByBlocks, partitionBySize, planReductions } from "./zero_partition.ts";

/** A part of a parameter with the place in the zero group of the rank that updates it. */
export interface OwnedPart extends ParameterPart {
  readonly owner: number;
}

export interface DivisionOptions {
  /** Ranks of the zero group. */
  readonly ranks: number;
  /** Cut every parameter into slices (`use_split_tensor_optim`) instead of dealing them out whole. @default {false} */
  readonly split?: boolean;
  /** Deal out neighbouring blocks (`overlap_sync_param`) instead of the largest first. @default {false} */
  readonly byBlocks?: boolean;
}

/**
 * Who updates what, by place in the zero group. The parameters stand in the order of the model's blocks.
 *
 * Slices begin at multiples of `partElements`, where a kernel can bind them; a small parameter may be one rank's whole.
 */
function divideState(
  parameters: readonly ParameterPlace[],
  { ranks, split = false, byBlocks = false }: DivisionOptions,
): OwnedPart[] {
  const counts = parameters.map(({ bytes }) => bytes / 4);
  if (split) {
    return parameters.flatMap(({ name }, index) => {
      const count = counts[index]!, each = Math.ceil(count / (ranks * partElements)) * partElements;
      return Array.from({ length: ranks }, (_, owner) => (
        { name, owner, begin: Math.min(count, owner * each), end: Math.min(count, (owner + 1) * each) }
      )).filter(({ begin, end }) => end > begin);
    });
  }
  const dealt = byBlocks ? partitionByBlocks(counts, ranks) : partitionBySize(counts, ranks), owners: number[] = [];
  dealt.forEach((indices, owner) => indices.forEach((index) => owners[index] = owner));
  return parameters.map(({ name }, index) => ({ name, owner: owners[index]!, begin: 0, end: counts[index]! }));
}

/** Parts that travel in one collective: those of the first owner, then those of the next. */
export interface Parcel {
  readonly parts: readonly OwnedPart[];
  readonly elements: number;
  /** Elements of each rank of the zero group. */
  readonly counts: readonly number[];
}

/** Updated parameters that travel in one collective. */
export interface Gather extends Parcel {
  /** In the model's half type, as the passes read them; else as `float32`. */
  readonly half: boolean;
}

/** Bytes of a part as it travels: devices are read and written in words of four. */
export const partBytes = ({ begin, end }: ParameterPart, half: boolean): number =>
  half ? 4 * Math.ceil((end - begin) / 2) : 4 * (end - begin);

function parcel(parts: readonly OwnedPart[], ranks: number): Parcel {
  const counts = new Array<number>(ranks).fill(0);
  for (const { owner, begin, end } of parts) counts[owner]! += end - begin;
  return {
    parts: [...parts].sort((a, b) => a.owner - b.owner), // stable: within an owner the order stays
    elements: counts.reduce((sum, count) => sum + count, 0),
    counts,
  };
}

/** More than this in one collective gains nothing, and would only take memory on the host. */
const mostElements = 16 << 20;

/** Parts of a parameter that is too large for one parcel, for several: each gets a piece of every owner's part. */
function cutParts(parts: readonly OwnedPart[], pieces: number): OwnedPart[][] {
  return Array.from({ length: pieces }, (_, piece) =>
    parts.flatMap((part) => {
      const each = partElements * Math.ceil((part.end - part.begin) / (pieces * partElements));
      const begin = part.begin + piece * each, end = Math.min(part.end, begin + each);
      return end > begin ? [{ ...part, begin, end }] : [];
    })).filter((parts) => parts.length > 0);
}

/**
 * Buckets of gradients, in the order in which they are done. A parameter larger than a bucket takes several.
 *
 * @param order parameters in the order in which the backward pass is done with their gradients
 * @param bucketElements `reduce_bucket_size`
 */
function planBuckets(
  division: readonly OwnedPart[],
  { order, ranks, bucketElements }: { order: readonly string[]; ranks: number; bucketElements: number },
): Parcel[] {
  const byName = Map.groupBy(division, ({ name }) => name);
  const counts = order.map((name) => byName.get(name)!.reduce((sum, { begin, end }) => sum + end - begin, 0));
  const most = Math.min(bucketElements, mostElements);
  return planReductions([counts], most).flatMap(({ parameters, elements }) => {
    const parts = parameters.flatMap((index) => byName.get(order[index]!)!);
    return cutParts(parts, Math.ceil(elements / most)).map((each) => parcel(each, ranks));
  });
}

/**
 * Gathers of updated parameters, in the order of the blocks, which is that of the forward pass: parameters are added until
 * a gather has `bytes` or more; one that has more by itself takes several.
 *
 * @param half parameters that the passes read in a half type
 */
function planGathers(
  division: readonly OwnedPart[],
  { ranks, bytes, half = new Set() }: { ranks: number; bytes: number; half?: ReadonlySet<string> },
): Gather[] {
  const most = Math.min(bytes, 4 * mostElements);
  // What travels as float32 in a model of a half type is little, and goes first.
  return [false, true].flatMap((isHalf) => {
    const gathers: Gather[] = [];
    let parts: OwnedPart[] = [], held = 0;
    const close = () => {
      if (parts.length > 0) gathers.push({ ...parcel(parts, ranks), half: isHalf });
      parts = [];
      held = 0;
    };
    for (const [name, each] of Map.groupBy(division, ({ name }) => name)) {
      if (half.has(name) !== isHalf) continue;
      const bytes = each.reduce((sum, part) => sum + partBytes(part, isHalf), 0);
      for (const piece of cutParts(each, Math.ceil(bytes / most))) {
        parts.push(...piece);
        held += piece.reduce((sum, part) => sum + partBytes(part, isHalf), 0);
        if (held >= most) close();
      }
    }
    close();
    return gathers;
  });
}

/** All that follows for the parameters of one group: those whose gradients and state go the same ways. */
export interface ZeroPlan {
  /** Ranks whose gradients are summed, and ranks that divide the state. */
  readonly reduce: Mode;
  readonly partition: Mode;
  /** As what gradients travel, where not as `float32`. */
  readonly wire?: HalfElements;
  readonly division: readonly OwnedPart[];
  readonly buckets: readonly Parcel[];
  readonly gathers: readonly Gather[];
}

/**
 * Sums over the ranks of a tensor group (isp: a weight group), made after all others and of what this rank updates alone:
 * those ranks update the same.
 *
 * @param summed parameters of whose gradient each of those ranks has a term
 */
export function planTerms(
  zero: readonly ZeroPlan[],
  summed: ReadonlySet<string>,
  { config, mesh }: { config: Pick<ResolvedConfig, "hybrid_zero_optimizer">; mesh: Pick<Mesh, "index"> },
): Parcel[] {
  const own = zero.flatMap(({ division, partition }) =>
    division.filter(({ name, owner }) => summed.has(name) && owner === mesh.index(partition))
  );
  const bucketElements = config.hybrid_zero_optimizer.reduce_bucket_size;
  const division = own.map((part) => ({ ...part, owner: 0 })), order = [...new Set(own.map(({ name }) => name))];
  return planBuckets(division, { order, ranks: 1, bucketElements });
}

/**
 * @param order parameters in the order in which the backward pass is done with their gradients
 * @param expert whether a parameter belongs to an expert: its ranks are others
 * @param sharded whether a parameter is kept in parts by a weight group, which sums its gradient: under `fsdp` some are whole
 */
export function planZero(
  { parameters, order, config, mesh, expert = () => false, sharded = () => false }: {
    parameters: readonly ParameterPlace[];
    order: readonly string[];
    config: Pick<ResolvedConfig, "hybrid_zero_optimizer" | "parallel" | "model" | "adam">;
    mesh: Pick<Mesh, "size">;
    expert?: (name: string) => boolean;
    sharded?: (name: string) => boolean;
  },
): ZeroPlan[] {
  const { hybrid_zero_optimizer: zero } = config;
  const half = new Set(parameters.filter(({ read: { type } }) => isHalf(type)).map(({ name }) => name));
  const groups = parameterGroups(parameters.map((place) => ({ name: place.name, place, expert: expert(place.name) })), {
    weightDecay: config.adam.weight_decay,
    tensorMode: config.parallel.tensor.mode,
    numExperts: config.model.num_experts,
  }).flatMap((group) => {
    if (!config.parallel.zero1.fsdp || group.reduce !== "data") return [group];
    const { true: parts = [], false: whole = [] } = Object.groupBy(group.parameters, ({ name }) => `${sharded(name)}`);
    return [{ ...group, parameters: whole }, { ...group, reduce: "weight_data" as const, parameters: parts }];
  });
  return groups.filter((group) => group.parameters.length > 0).map(({ reduce, partition, parameters }) => {
    const mode: Mode = partition === "zero1" ? "zero" : partition, ranks = mesh.size(mode);
    const names = new Set(parameters.map(({ name }) => name));
    const division = divideState(parameters.map(({ place }) => place), {
      ranks,
      split: zero.use_split_tensor_optim,
      byBlocks: zero.overlap_sync_param,
    });
    const wire = ({ float32: undefined, float16: "f16", bfloat16: "bf16" } as const)[zero.reduce_comm_dtype];
    return {
      reduce,
      partition: mode,
      ...(wire && { wire }),
      division,
      buckets: planBuckets(division, {
        order: order.filter((name) => names.has(name)),
        ranks,
        bucketElements: zero.reduce_bucket_size,
      }),
      gathers: planGathers(division, { ranks, bytes: zero.all_gather_size, half }),
    };
  });
}
