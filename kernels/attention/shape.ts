/** Sizes of attention, shared by every form of the kernels. */

export interface AttentionOptions {
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
}

export type AttentionShape = Required<AttentionOptions>;
