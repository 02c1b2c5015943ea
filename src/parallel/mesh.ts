/** The mesh: the one object that knows ranks and axes. It is passed in, never global. */

/** Axes that a tensor can be laid out over, and those that only divide data or layers. */
export type Axis = "data" | "tensor" | "weight" | "pipeline" | "expert" | "zero";

export interface Mesh {
  readonly world: number;
  readonly rank: number;
  /** Ranks along an axis; 1 where the axis is off. */
  size(axis: Axis): number;
  /** This rank's place along an axis. */
  index(axis: Axis): number;
}

/** The mesh of a run on one rank: every axis has size one. */
export const singleRank: Mesh = { world: 1, rank: 0, size: () => 1, index: () => 0 };
