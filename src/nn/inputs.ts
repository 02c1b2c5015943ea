/**
 * What a language model is fed: one micro-batch, flat. A packed row or several rows of a batch are the same thing here:
 * tokens in segments, each token told where its segment starts and ends.
 */
import { rotaryTables } from "../../kernels/rope/mod.ts";
import { f32, type Graph, type Tensor, type TensorType } from "../graph/graph.ts";
import type { DecoderSettings } from "./settings.ts";

export interface ModelInputs {
  /** Token ids `[tokens]`. */
  readonly ids: Tensor;
  /** Position of each token inside its segment `[tokens]`. */
  readonly positions: Tensor;
  /** First token of each token's segment, and one past its last `[tokens]`. */
  readonly start: Tensor;
  readonly end: Tensor;
  /** Tokens of the longest segment that is to be expected. */
  readonly longest: number;
  /** `[seed, step and micro-batch]` that key dropout's random streams; absent when evaluating. */
  readonly dropoutCounter: Tensor | undefined;
  /** Losses beside that of the predictions; absent when evaluating. */
  readonly auxiliary?: AuxiliaryLosses | undefined;
}

/** Losses that parts of a model add to that of its predictions, such as experts' balance. */
export interface AuxiliaryLosses {
  /** Factor of their gradients `[1]`, an input that is there once it is asked for. */
  weight(): Tensor;
  /** Adds a root of differentiation `[1]`, whose value the host reads. */
  add(loss: Tensor): void;
  readonly losses: readonly Tensor[];
}

function auxiliaryLosses(graph: Graph): AuxiliaryLosses {
  const losses: Tensor[] = [];
  return {
    weight: () => graph.inputs.get("auxiliaryWeight") ?? graph.input("auxiliaryWeight", f32(1)),
    add: (loss) => losses.push(loss),
    losses,
  };
}

/** Declares the inputs of every model, and those of its loss. */
export function declareInputs(
  graph: Graph,
  { tokens, longest = tokens, training }: { tokens: number; longest?: number; training: boolean },
): { inputs: ModelInputs; labels: Tensor; lossWeight: Tensor } {
  const perToken = (type: TensorType["type"]): TensorType => ({ shape: [tokens], type });
  return {
    inputs: {
      ids: graph.input("ids", perToken("u32")),
      positions: graph.input("positions", perToken("u32")),
      start: graph.input("start", perToken("u32")),
      end: graph.input("end", perToken("u32")),
      longest,
      dropoutCounter: training ? graph.input("dropoutCounter", { shape: [2], type: "u32" }) : undefined,
      auxiliary: training ? auxiliaryLosses(graph) : undefined,
    },
    labels: graph.input("labels", perToken("i32")),
    lossWeight: graph.input("lossWeight", f32(1)),
  };
}

/**
 * Cosines and sines by position, `[positions, headDim / 2]` each. They are constants, except where the base depends on
 * the batch (dynamic NTK): then they are inputs named `rotaryCosine` and `rotarySine`, which the host fills.
 */
export function declareRotaryTables(
  graph: Graph,
  { rope, headDim }: Pick<DecoderSettings, "rope" | "headDim">,
  length: number,
): { cosine: Tensor; sine: Tensor } {
  const shape = [length, headDim / 2];
  if (rope.dynamicBeyond !== undefined) {
    return { cosine: graph.input("rotaryCosine", f32(...shape)), sine: graph.input("rotarySine", f32(...shape)) };
  }
  const { cosine, sine } = rotaryTables({ headDim, base: rope.base, length });
  return {
    cosine: graph.constant("rotaryCosine", shape, cosine),
    sine: graph.constant("rotarySine", shape, sine),
  };
}
