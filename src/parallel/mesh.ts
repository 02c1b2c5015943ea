/** The mesh: the one object that knows ranks and axes. It is passed in, never global. */
import type { ParallelSizes } from "../config/parallel_sizes.ts";

/** Axes that a tensor can be laid out over, and those that only divide data or layers. */
export type Axis = "data" | "tensor" | "weight" | "pipeline" | "expert" | "expert_tensor" | "expert_weight" | "zero";

/** Process groups: InternEvo's parallel modes by their names in small letters; `zero` is its ZERO1. */
export const modes = [
  "global",
  "tensor",
  "data",
  "pipeline",
  "weight",
  "weight_data",
  "zero",
  "zero3_dp",
  "expert",
  "expert_data",
  "expert_tensor",
  "expert_weight",
  "head",
  "context",
  "nettest",
] as const;
export type Mode = typeof modes[number];

/** Ranks that communicate with each other. */
export interface ProcessGroup {
  readonly mode: Mode;
  /** Ranks of the world, ascending: a rank's place in the list is its rank in the group. */
  readonly ranks: readonly number[];
  /** This rank's place in `ranks`. */
  readonly index: number;
}

export interface Mesh {
  readonly world: number;
  readonly rank: number;
  /** Ranks along an axis or in a group; 1 where it is off. */
  size(mode: Mode): number;
  /** This rank's place along an axis or in its group. */
  index(mode: Mode): number;
  /** This rank's group; itself alone where the mode is off. */
  group(mode: Mode): ProcessGroup;
  /** All groups of a mode, by their least rank. Together they hold every rank once. */
  groups(mode: Mode): number[][];
  /** Whether this rank writes the log: first in tensor, data and weight groups, in the last pipeline stage. */
  readonly logs: boolean;
}

/** Where a mode's groups lie: member `i` of a group is `i · stride` above its first. */
interface Span {
  readonly size: number;
  readonly stride: number;
}

export interface MeshOptions {
  readonly sizes: ParallelSizes;
  readonly rank: number;
  /** Under `isp` optimizer state is divided over the ranks with the same weights, and experts over weight groups. */
  readonly tensorMode?: "mtp" | "msp" | "fsp" | "isp";
  /** 1: no experts, hence no expert groups. @default {1} */
  readonly numExperts?: number;
  /** Parameters are sharded too: adds the groups `zero3_dp`, and lays weight groups out inside data groups. @default {false} */
  readonly fsdp?: boolean;
  /** Attention over a grid of heads × context inside each tensor group. */
  readonly sequence2D?: { readonly headSize: number; readonly contextSize: number; readonly headFirst: boolean };
}

/** Ranks that are probed together when a slow link is looked for. */
const nettestBlock = 32;

/**
 * Lists of modes are laid out from fastest to slowest varying, each list over the whole world:
 *
 * ```text
 * tensor        × data        × pipeline
 * weight        × weight_data × pipeline               (fsdp: inside data)
 * expert_tensor × expert × expert_data × pipeline      (isp: expert_weight first)
 * head          × context  inside tensor               (or context first)
 * zero          × zero3_dp inside data                 (isp: inside weight_data)
 * ```
 *
 * @throws {RangeError} when the sizes of a list do not multiply to the world, or the rank is not of it
 *
 * @example
 * ```ts
 * import { createMesh } from "./mesh.ts";
 * const sizes = { world: 8, tp: 2, pp: 2, dp: 2, wp: 1, wdp: 4, zero1: 2, ep: 1, edp: 2, etp: 2, ewp: 1 };
 * const mesh = createMesh({ sizes, rank: 5 });
 * console.assert(mesh.group("pipeline").ranks.join() === "1,5" && mesh.index("data") === 0);
 * ```
 */
export function createMesh(options: MeshOptions): Mesh {
  const { sizes, rank, tensorMode = "mtp", numExperts = 1, fsdp = false, sequence2D } = options;
  const { world, tp, pp, dp, wp, wdp, zero1, ep, edp, etp, ewp } = sizes, isp = tensorMode === "isp";
  if (!(Number.isSafeInteger(rank) && rank >= 0 && rank < world)) {
    throw new RangeError(`Cannot make a mesh: rank ${rank} is not one of 0 to ${world - 1}`);
  }

  const spans = new Map<Mode, Span>();
  const layOut = (total: number, stride: number, list: readonly (readonly [Mode, number])[]) => {
    const product = list.reduce((all, [, size]) => all * size, 1);
    if (product !== total || list.some(([, size]) => !Number.isSafeInteger(size) || size < 1)) {
      const text = list.map(([mode, size]) => `${mode} (${size})`).join(" × ");
      throw new RangeError(`Cannot make a mesh: ${text} is ${product}; it must be ${total}`);
    }
    for (const [mode, size] of list) {
      spans.set(mode, { size, stride });
      stride *= size;
    }
  };
  layOut(world, 1, [["global", world]]);
  layOut(world, 1, [["tensor", tp], ["data", dp], ["pipeline", pp]]);
  const data = spans.get("data")!;
  if (fsdp && wp > 1) layOut(data.size, data.stride, [["weight", wp], ["weight_data", wdp]]);
  else layOut(world, 1, [["weight", wp], ["weight_data", wdp], ["pipeline", pp]]);
  if (numExperts > 1) {
    const inner: readonly [Mode, number] = isp ? ["expert_weight", ewp] : ["expert_tensor", etp];
    layOut(world, 1, [inner, ["expert", ep], ["expert_data", edp], ["pipeline", pp]]);
  }
  if (sequence2D) {
    const { headSize, contextSize, headFirst } = sequence2D;
    const grid: (readonly [Mode, number])[] = [["head", headSize], ["context", contextSize]];
    layOut(tp, 1, headFirst ? grid : grid.reverse());
  }
  const parent = isp ? spans.get("weight_data")! : data;
  layOut(parent.size, parent.stride, [["zero", zero1], ["zero3_dp", parent.size / zero1]]);
  if (!fsdp) spans.delete("zero3_dp");

  const ranksOf = (mode: Mode, of: number): number[] => {
    if (mode === "nettest") {
      const first = of - of % nettestBlock;
      return Array.from({ length: Math.min(nettestBlock, world - first) }, (_, i) => first + i);
    }
    const { size, stride } = spans.get(mode) ?? { size: 1, stride: 1 };
    const first = of - Math.floor(of / stride) % size * stride;
    return Array.from({ length: size }, (_, i) => first + i * stride);
  };
  const own = new Map(modes.map((mode): [Mode, ProcessGroup] => {
    const ranks = ranksOf(mode, rank);
    return [mode, { mode, ranks, index: ranks.indexOf(rank) }];
  }));
  const group = (mode: Mode) => own.get(mode)!;
  const index = (mode: Mode) => group(mode).index;
  return {
    world,
    rank,
    size: (mode) => group(mode).ranks.length,
    index,
    group,
    groups(mode) {
      const all: number[][] = [];
      for (let of = 0; of < world; of++) {
        const ranks = ranksOf(mode, of);
        if (ranks[0] === of) all.push(ranks);
      }
      return all;
    },
    logs: (["tensor", "data", "weight", "weight_data"] as const).every((mode) => index(mode) === 0) &&
      index("pipeline") === pp - 1,
  };
}

/** The mesh of a run on one rank: every axis has size one. */
export const singleRank: Mesh = createMesh({
  sizes: { world: 1, tp: 1, pp: 1, dp: 1, wp: 1, wdp: 1, zero1: 1, ep: 1, edp: 1, etp: 1, ewp: 1 },
  rank: 0,
});
