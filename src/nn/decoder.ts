/**
 * The pre-norm decoder that the families share, written for one device:
 *
 * ```text
 * r   = dropout(x);  a = attention(norm1(r));  r2 = r + dropout(a);  out = r2 + ffn(norm2(r2))
 * ```
 *
 * Shapes: T tokens, H hidden, A heads, K key/value heads, D head size, F feed-forward size, V vocabulary.
 */
import type { Graph, Initialization, Tensor } from "../graph/graph.ts";
import {
  add,
  attention,
  cast,
  dropout,
  embedding,
  gate,
  layerNorm,
  linear,
  rmsNorm,
  rotate,
  rowNormalize,
  scale,
} from "../graph/operators.ts";
import { declareRotaryTables, type ModelInputs } from "./inputs.ts";
import { mixtureOfExperts } from "./moe.ts";
import type { DecoderSettings } from "./settings.ts";

const zeros: Initialization = { kind: "constant", value: 0 };
const ones: Initialization = { kind: "constant", value: 1 };

/** Logits `[T, V]`. */
export function decoder(graph: Graph, inputs: ModelInputs, settings: DecoderSettings): Tensor {
  const { hiddenSize, vocabSize, initialization } = settings;
  const tokens = inputs.ids.shape[0]!;
  const tables = { positions: inputs.positions, ...declareRotaryTables(graph, settings, tokens) };

  const table = graph.parameter("embedding.weight", [vocabSize, hiddenSize], initialization.embedding);
  const { types } = graph;
  const embedded = embedding(inputs.ids, table, { gradientScale: settings.embedGradScale, type: types.stream }); // [T, H]
  let stream = settings.embeddingScale === 1 ? embedded : scale(embedded, settings.embeddingScale);
  for (let layer = 0; layer < settings.numLayers; layer++) {
    stream = graph.inLayer(layer, () => block(graph, stream, inputs, tables, layer, settings));
  }
  const output = normalize(graph, stream, "norm", settings);
  const head = settings.tiedHead
    ? table
    : graph.parameter("head.weight", [vocabSize, hiddenSize], initialization.head, types.head);
  return linear(output, settings.normHead ? rowNormalize(head) : head, {
    weightGradientScale: settings.embedGradScale,
    type: types.head,
  });
}

function block(
  graph: Graph,
  x: Tensor,
  inputs: ModelInputs,
  tables: { positions: Tensor; cosine: Tensor; sine: Tensor },
  layer: number,
  settings: DecoderSettings,
): Tensor {
  const { hiddenSize, heads, kvHeads, headDim, ffnSize, bias, rope, initialization } = settings;
  const name = `layers.${layer}`;
  const dense = (
    input: Tensor,
    part: string,
    out: number,
    init: Initialization,
    { bias = false, residual }: { bias?: boolean; residual?: Tensor } = {},
  ) =>
    linear(input, graph.parameter(`${name}.${part}.weight`, [out, input.shape[1]!], init), {
      ...(bias ? { bias: graph.parameter(`${name}.${part}.bias`, [out], zeros) } : {}),
      ...(residual ? { residual } : {}),
    });
  const dropped = (input: Tensor, place: number) =>
    settings.dropRate > 0 && inputs.dropoutCounter
      ? dropout(input, inputs.dropoutCounter, { rate: settings.dropRate, layer: 2 * layer + place })
      : input;

  const residual = dropped(x, 0);
  const h = normalize(graph, residual, `${name}.attention_norm`, settings);
  const q = dense(h, "attention.q", heads * headDim, initialization.qkv, { bias: bias.qkv }); // [T, A*D]
  const k = dense(h, "attention.k", kvHeads * headDim, initialization.qkv, { bias: bias.qkv }); // [T, K*D]
  const v = dense(h, "attention.v", kvHeads * headDim, initialization.qkv, { bias: bias.qkv });
  const mixed = attention(
    {
      q: rotate(q, tables, { heads, interleaved: rope.interleaved }),
      k: rotate(k, tables, { heads: kvHeads, interleaved: rope.interleaved }),
      v,
    },
    inputs,
    { heads, kvHeads, longest: inputs.longest },
  );
  const outInit = initialization.attentionOutput(layer);
  const attended = settings.dropRate > 0 && inputs.dropoutCounter
    ? add(
      dropped(cast(dense(mixed, "attention.o", hiddenSize, outInit, { bias: bias.output }), graph.types.stream), 1),
      residual,
    )
    : dense(mixed, "attention.o", hiddenSize, outInit, { bias: bias.output, residual });

  const f = normalize(graph, attended, `${name}.ffn_norm`, settings);
  if (settings.moe) {
    const mixed = mixtureOfExperts(graph, f, inputs, layer, { ...settings, moe: settings.moe });
    return add(cast(mixed, graph.types.stream), attended);
  }
  const gated = gate(
    dense(f, "ffn.gate", ffnSize, initialization.ffnUp), // [T, F]
    dense(f, "ffn.up", ffnSize, initialization.ffnUp),
    settings.activation,
  );
  return dense(gated, "ffn.down", hiddenSize, initialization.ffnDown(layer), { residual: attended });
}

function normalize(graph: Graph, x: Tensor, name: string, { hiddenSize, norm }: DecoderSettings): Tensor {
  const { types } = graph, read = cast(x, types.model);
  const parameter = (part: string, initialization: Initialization) =>
    graph.parameter(`${name}.${part}`, [hiddenSize], initialization, types.norm);
  const weight = parameter("weight", norm.unitOffset ? zeros : ones);
  if (norm.kind === "rmsnorm") {
    return rmsNorm(read, weight, { epsilon: norm.epsilon, unitOffset: norm.unitOffset });
  }
  return layerNorm(read, weight, parameter("bias", zeros), { epsilon: norm.epsilon });
}
