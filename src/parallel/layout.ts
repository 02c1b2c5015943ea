/**
 * Layouts: where a tensor lives, declared over named axes beside each model. Nothing here depends on the sizes of a run:
 * an axis of size one vanishes.
 */
import type { Axis, Mesh } from "./mesh.ts";

export type Layout =
  | { readonly kind: "replicated" }
  /** Dimension `dimension` is divided evenly over `axis`. */
  | { readonly kind: "split"; readonly dimension: number; readonly axis: Axis };

export const replicated = (): Layout => ({ kind: "replicated" });
export const split = (dimension: number, axis: Axis): Layout => ({ kind: "split", dimension, axis });

/** Layout of each parameter, by pattern of canonical names; `*` stands for one or more parts of a name. */
export type ShardingPlan = Readonly<Record<string, Layout>>;

/** A box of a global tensor: what one rank holds of it, and what a checkpoint entry says it holds. */
export interface Box {
  readonly shape: readonly number[];
  readonly offset: readonly number[];
  readonly extent: readonly number[];
}

/** @throws {TypeError} when no pattern or more than one fits: every parameter has exactly one declared layout. */
export function layoutOf(name: string, plan: ShardingPlan): Layout {
  const matches = Object.keys(plan).filter((pattern) => {
    const text = pattern.split("*").map((part) => part.replaceAll(".", "\\.")).join("[^ ]+");
    return new RegExp(`^${text}$`).test(name);
  });
  if (matches.length !== 1) {
    throw new TypeError(
      `Cannot lay out parameter ${name}: ${matches.length === 0 ? "no pattern" : `patterns ${matches.join(", ")}`} ` +
        `of the sharding plan fit; exactly one must`,
    );
  }
  return plan[matches[0]!]!;
}

/** What this rank holds of a tensor of global shape `shape`. */
export function boxOf(shape: readonly number[], layout: Layout, mesh: Mesh): Box {
  const offset = shape.map(() => 0), extent = [...shape];
  if (layout.kind === "split") {
    const parts = mesh.size(layout.axis), whole = shape[layout.dimension]!;
    if (whole % parts !== 0) {
      throw new RangeError(
        `Cannot split dimension ${layout.dimension} of [${shape}] over ${layout.axis}: ${whole} is no multiple of ${parts}`,
      );
    }
    extent[layout.dimension] = whole / parts;
    offset[layout.dimension] = mesh.index(layout.axis) * extent[layout.dimension]!;
  }
  return { shape, offset, extent };
}
