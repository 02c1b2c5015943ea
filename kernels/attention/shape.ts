/** Sizes of attention, shared by every form of the kernels. */
import type { Stored } from "../storage.ts";

/** `type` is that of all operands but the log-sum-exp, which is `f32`. Every form takes every type. */
export interface AttentionOptions extends Stored {
  /** Tokens of all segments together. */
  readonly tokens: number;
  /** Heads of the queries. */
  readonly heads: number;
  /** Heads of keys and values; divides `heads`. Query head h uses key head ⌊h / (heads / kvHeads)⌋. */
  readonly kvHeads: number;
  /** Elements of a head: even, 2 to 256. */
  readonly headDim: number;
  /** Factor of the scores. @default {1 / Math.sqrt(headDim)} */
  readonly scale?: number;
  /** Tokens of the longest segment that is to be expected: scratch is for those, longer ones take longer. @default {tokens} */
  readonly longest?: number;
}

export type AttentionShape = Required<Omit<AttentionOptions, "longest">> & Pick<AttentionOptions, "longest">;
