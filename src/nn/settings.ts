/** What a decoder needs to be told: the sizes and choices that families derive from the run record's `model` section. */
import type { Initialization } from "../graph/graph.ts";
import type { MoeSettings } from "./moe.ts";
import type { Activation } from "../../kernels/gate/mod.ts";

export interface DecoderSettings {
  readonly numLayers: number;
  readonly hiddenSize: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  readonly ffnSize: number;
  readonly norm: { readonly kind: "rmsnorm" | "layernorm"; readonly epsilon: number; readonly unitOffset: boolean };
  readonly activation: Activation;
  readonly bias: { readonly qkv: boolean; readonly output: boolean };
  readonly rope: {
    readonly base: number;
    readonly interleaved: boolean;
    /** Present: the base grows with the longest segment of a batch beyond this many positions. */
    readonly dynamicBeyond?: number;
  };
  /** Factor on the embedding's output. */
  readonly embeddingScale: number;
  /** The head's weight is the embedding table. */
  readonly tiedHead: boolean;
  /** Factor on the gradients of the embedding table and of the head. */
  readonly embedGradScale: number;
  /** Rows of the head's weight are scaled to length one before use. */
  readonly normHead: boolean;
  /** Mixtures of experts in place of the feed-forward layers. */
  readonly moe?: MoeSettings;
  /** Rate of the dropout on each block's input and on attention's output. */
  readonly dropRate: number;
  readonly initialization: {
    readonly embedding: Initialization;
    readonly qkv: Initialization;
    readonly attentionOutput: (layer: number) => Initialization;
    readonly ffnUp: Initialization;
    readonly ffnDown: (layer: number) => Initialization;
    readonly head: Initialization;
  };
}

/** Width of the feed-forward: `multiple_of * ceil(int(hidden * ratio) / multiple_of)`. */
export function roundedFfnSize(hiddenSize: number, ratio: number, multipleOf: number): number {
  return multipleOf * Math.ceil(Math.trunc(hiddenSize * ratio) / multipleOf);
}
