/**
 * Layouts: where a tensor lives, declared over named axes beside each model. Nothing here depends on the sizes of a run:
 * an axis of size one vanishes.
 */
import type { Axis, Mesh } from "./mesh.ts";

export type Layout = { readonly kind: "replicated" } | Split;

/** Dimension `dimension` is divided evenly over `axis`. */
export interface Split {
  readonly kind: "split";
  readonly dimension: number;
  readonly axis: Axis;
  /** How a part is divided further, over another axis; parameters alone are. */
  readonly then?: Split;
}

export const replicated = (): Layout => ({ kind: "replicated" });
export const split = (dimension: number, axis: Axis, then?: Split): Split => (
  { kind: "split", dimension, axis, ...(then && { then }) }
);

/** The divisions of a layout, from the whole tensor on. */
export const divisions = (layout: Layout): Split[] =>
  layout.kind === "replicated" ? [] : [layout, ...(layout.then ? divisions(layout.then) : [])];

/** The layout of these divisions alone. */
export const without = (layout: Layout, left: (division: Split) => boolean): Layout =>
  divisions(layout).filter((division) => !left(division))
    .reduceRight<Split | undefined>((then, { dimension, axis }) => split(dimension, axis, then), undefined) ??
    replicated();

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
  for (const { dimension, axis } of divisions(layout)) {
    const parts = mesh.size(axis), whole = extent[dimension]!;
    if (whole % parts !== 0) {
      throw new RangeError(
        `Cannot split dimension ${dimension} of [${shape}] over ${axis}: ${whole} is no multiple of ${parts}`,
      );
    }
    extent[dimension] = whole / parts;
    offset[dimension]! += mesh.index(axis) * extent[dimension]!;
  }
  return { shape, offset, extent };
}
