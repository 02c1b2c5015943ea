/** What the dense decoder families share: settings from the `model` section, layouts, and pieces of weight formats. */
import type { Initialization } from "../graph/graph.ts";
import { type DecoderSettings, roundedFfnSize } from "../nn/settings.ts";
import { replicated, type ShardingPlan, split } from "../parallel/layout.ts";
import type { ModelSection, TensorMapping } from "./family.ts";

/** Which projections have biases: q, k and v together, and attention's output. */
export interface Biases {
  readonly qkv: boolean;
  readonly output: boolean;
}

/** The families in which one switch rules all of them. */
const biasesOf = (section: ModelSection): Biases => ({ qkv: !section.no_bias, output: !section.no_bias });

/** Initial weights of a deviation, in the distribution that the section asks for. */
export const drawn = (section: ModelSection, std: number): Initialization =>
  section.init_type === "uniform" ? { kind: "uniform", bound: Math.sqrt(3 * std) } : { kind: "normal", std };

export function denseSettings(section: ModelSection, bias: Biases = biasesOf(section)): DecoderSettings {
  const draw = (std: number) => drawn(section, std);
  const scaled = (std: number) => (layer: number) =>
    draw(section.use_scaled_init ? std / Math.sqrt(2 * (layer + 1)) : std);
  return {
    numLayers: section.num_layers,
    hiddenSize: section.hidden_size,
    heads: section.num_attention_heads,
    kvHeads: section.num_kv_attention_heads,
    headDim: denseSizes(section).headDim,
    vocabSize: section.vocab_size,
    ffnSize: roundedFfnSize(section.hidden_size, section.mlp_ratio, section.multiple_of),
    norm: {
      kind: section.norm_type === "layernorm" ? "layernorm" : "rmsnorm",
      epsilon: section.layer_norm_epsilon,
      unitOffset: section.add_unit_offset,
    },
    activation: section.use_swiglu ? "silu" : section.gelu_approximate === "tanh" ? "gelu_tanh" : "gelu",
    bias,
    embeddingScale: 1,
    tiedHead: section.tie_word_embeddings,
    rope: { base: section.rope_base, interleaved: section.qk_interleaved },
    embedGradScale: section.embed_grad_scale,
    normHead: section.norm_head,
    dropRate: section.drop_rate,
    initialization: {
      embedding: draw(section.embedding_init_std),
      qkv: draw(section.attn_wqkv_init_std),
      attentionOutput: scaled(section.attn_other_init_std),
      ffnUp: draw(section.ffn_uplayer_init_std),
      ffnDown: scaled(section.ffn_other_init_std),
      head: draw(section.out_head_init_std),
    },
  };
}

/** Attention by heads, feed-forward by its inner width, vocabulary by rows of the head and columns of the table. */
export const denseSharding: ShardingPlan = {
  "embedding.weight": split(1, "tensor"),
  "layers.*.attention_norm.*": replicated(),
  "layers.*.attention.q.*": split(0, "tensor"),
  "layers.*.attention.k.*": split(0, "tensor"),
  "layers.*.attention.v.*": split(0, "tensor"),
  "layers.*.attention.o.weight": split(1, "tensor"),
  "layers.*.attention.o.bias": replicated(),
  "layers.*.ffn_norm.*": replicated(),
  "layers.*.ffn.gate.*": split(0, "tensor"),
  "layers.*.ffn.up.*": split(0, "tensor"),
  "layers.*.ffn.down.weight": split(1, "tensor"),
  "norm.*": replicated(),
  "head.weight": split(0, "tensor"),
};

/** Sizes that weight formats speak of. */
export function denseSizes(section: ModelSection) {
  const { hidden_size: hidden, num_attention_heads: heads, num_kv_attention_heads: kvHeads } = section;
  const headDim = section.head_dim ?? hidden / heads;
  return {
    hidden,
    headDim,
    heads,
    kvHeads,
    qRows: heads * headDim,
    kvRows: kvHeads * headDim,
    ffn: roundedFfnSize(hidden, section.mlp_ratio, section.multiple_of),
    vocab: section.vocab_size,
  };
}

/** A tensor that holds one parameter whole. */
export const whole = (tensor: string, parameter: string, shape: readonly number[]): TensorMapping => ({
  tensor,
  shape,
  parts: [{ parameter }],
});

export const rowRange = (first: number, count: number): number[] => Array.from({ length: count }, (_, i) => first + i);

/** Names that differ between formats of the dense families. `{i}` is the layer. */
export interface DenseNames {
  readonly embedding: string;
  readonly head: string;
  readonly norm: string;
  readonly layer: string;
  readonly attentionNorm: string;
  readonly ffnNorm: string;
  readonly attentionOutput: string;
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

/**
 * The mapping of a dense family: the parts that differ in names only, and `qkv`, which says how a layer's query, key
 * and value are stored under the layer's prefix; `ffn` says it of the feed-forward layers where these are mixtures.
 */
export function denseTensors(
  section: ModelSection,
  names: DenseNames,
  qkv: (prefix: string, canonical: string) => readonly TensorMapping[],
  bias: Biases = biasesOf(section),
  ffn?: (prefix: string, canonical: string) => readonly TensorMapping[],
): TensorMapping[] {
  const { hidden, qRows, ffn: inner, vocab } = denseSizes(section);
  const norm = (name: string, parameter: string) => [
    whole(`${name}.weight`, `${parameter}.weight`, [hidden]),
    ...(section.norm_type === "layernorm" ? [whole(`${name}.bias`, `${parameter}.bias`, [hidden])] : []),
  ];
  const layers = Array.from({ length: section.num_layers }, (_, i) => {
    const prefix = `${names.layer}.${i}`, canonical = `layers.${i}`;
    const dense = (name: string, parameter: string, shape: number[]) =>
      whole(`${prefix}.${name}.weight`, `${canonical}.${parameter}.weight`, shape);
    return [
      ...qkv(prefix, canonical),
      dense(names.attentionOutput, "attention.o", [hidden, qRows]),
      ...(bias.output
        ? [whole(`${prefix}.${names.attentionOutput}.bias`, `${canonical}.attention.o.bias`, [hidden])]
        : []),
      ...norm(`${prefix}.${names.attentionNorm}`, `${canonical}.attention_norm`),
      ...norm(`${prefix}.${names.ffnNorm}`, `${canonical}.ffn_norm`),
      ...(ffn?.(prefix, canonical) ?? [
        dense(names.gate, "ffn.gate", [inner, hidden]),
        dense(names.down, "ffn.down", [hidden, inner]),
        dense(names.up, "ffn.up", [inner, hidden]),
      ]),
    ];
  });
  return [
    whole(names.embedding, "embedding.weight", [vocab, hidden]),
    ...layers.flat(),
    ...norm(names.norm, "norm"),
    ...(section.tie_word_embeddings ? [] : [whole(names.head, "head.weight", [vocab, hidden])]),
  ];
}

/** Query, key and value as three tensors, with biases where the section has them. */
export function separateQkv(
  section: ModelSection,
  names: { q: string; k: string; v: string },
  bias: Biases = biasesOf(section),
) {
  const { hidden, qRows, kvRows } = denseSizes(section);
  return (prefix: string, canonical: string): TensorMapping[] =>
    (["q", "k", "v"] as const).flatMap((part) => {
      const rows = part === "q" ? qRows : kvRows, parameter = `${canonical}.attention.${part}`;
      return [
        whole(`${prefix}.${names[part]}.weight`, `${parameter}.weight`, [rows, hidden]),
        ...(bias.qkv ? [whole(`${prefix}.${names[part]}.bias`, `${parameter}.bias`, [rows])] : []),
      ];
    });
}

/** Query, key and value fused in one tensor; `rows` gives the file's rows of each. */
export function fusedQkv(section: ModelSection, name: string, rows: Record<"q" | "k" | "v", readonly number[]>) {
  const { hidden, qRows, kvRows } = denseSizes(section);
  return (prefix: string, canonical: string): TensorMapping[] =>
    (section.no_bias ? ["weight"] : ["weight", "bias"]).map((kind) => ({
      tensor: `${prefix}.${name}.${kind}`,
      shape: kind === "weight" ? [qRows + 2 * kvRows, hidden] : [qRows + 2 * kvRows],
      parts: (["q", "k", "v"] as const).map((part) => ({
        parameter: `${canonical}.attention.${part}.${kind}`,
        rows: rows[part],
      })),
    }));
}

/** Rows grouped by key/value head: its query heads, then its key, then its value. */
export function groupedRows(section: ModelSection): Record<"q" | "k" | "v", number[]> {
  const { heads, kvHeads, headDim } = denseSizes(section);
  const perGroup = heads / kvHeads, stride = (perGroup + 2) * headDim;
  const of = (slot: number, count: number) =>
    Array.from({ length: kvHeads }, (_, group) => rowRange(group * stride + slot * headDim, count * headDim)).flat();
  return { q: of(0, perGroup), k: of(perGroup, 1), v: of(perGroup + 1, 1) };
}

// ------------------------------------------------------------------------------------------- config.json, both ways

type Json = Readonly<Record<string, unknown>>;

function number(config: Json, name: string, fallback?: number): number {
  const value = config[name] ?? fallback;
  if (typeof value !== "number") {
    throw new TypeError(`Cannot read config.json: ${name} is ${JSON.stringify(config[name])}, a number is needed`);
  }
  return value;
}

/** What a Llama-shaped family may have that Llama itself does not. */
export interface LlamaVariant {
  /** Activations that it may name; the first is what is written. */
  readonly activations?: readonly string[];
  /** Heads may be wider or narrower than hidden_size / heads. */
  readonly freeHeadDim?: boolean;
  /** What a file means that does not say whether its head is the embedding. */
  readonly tiedHead?: boolean;
  /** Norms multiply by 1 + weight. */
  readonly unitOffset?: boolean;
}

/** The `model` section of a Llama-shaped `config.json`. */
export function sectionFromLlamaConfig(
  config: Json,
  { activations = ["silu"], freeHeadDim = false, tiedHead = false }: LlamaVariant = {},
): Record<string, unknown> {
  const hidden = number(config, "hidden_size"), heads = number(config, "num_attention_heads");
  const headDim = number(config, "head_dim", hidden / heads);
  if (headDim * heads !== hidden && !freeHeadDim) {
    throw new RangeError(
      `Cannot read config.json: head_dim is ${headDim}, hidden_size / num_attention_heads = ${
        hidden / heads
      } is needed`,
    );
  }
  const rope = (config.rope_parameters ?? {}) as Json, scaling = (config.rope_scaling ?? {}) as Json;
  const standard: readonly (readonly [string, unknown, readonly unknown[]])[] = [
    ["tie_word_embeddings", config.tie_word_embeddings, [false, true]],
    ["mlp_bias", config.mlp_bias, [false]],
    ["hidden_act", config.hidden_activation ?? config.hidden_act, activations],
    ["rotary type", rope.rope_type ?? scaling.rope_type ?? scaling.type, ["default"]],
    ["use_sliding_window", config.use_sliding_window, [false]],
  ];
  for (const [name, value, needed] of standard) {
    if (value === undefined || value === null || needed.includes(value)) continue;
    throw new RangeError(
      `Cannot read config.json: ${name} is ${JSON.stringify(value)}, ` +
        `${needed.map((one) => JSON.stringify(one)).join(" or ")} is needed`,
    );
  }
  return {
    num_layers: number(config, "num_hidden_layers"),
    hidden_size: hidden,
    num_attention_heads: heads,
    num_kv_attention_heads: number(config, "num_key_value_heads", heads),
    vocab_size: number(config, "vocab_size"),
    // Half a unit more, so that int(hidden * ratio) is the size itself whatever the rounding.
    mlp_ratio: (number(config, "intermediate_size") + 0.5) / hidden,
    multiple_of: 1,
    layer_norm_epsilon: number(config, "rms_norm_eps", 1e-6),
    rope_base: number(rope, "rope_theta", number(config, "rope_theta", 10000)),
    max_position_embeddings: number(config, "max_position_embeddings", 2048),
    no_bias: !(config.attention_bias === true || config.bias === true),
    embed_grad_scale: 1,
    qk_interleaved: false,
    tie_word_embeddings: config.tie_word_embeddings ?? tiedHead,
  };
}

/**
 * The Llama-shaped `config.json` of a `model` section.
 *
 * @throws {RangeError} for a choice that such a file cannot express
 */
export function llamaConfigFromSection(
  section: ModelSection,
  { activations = ["silu"], freeHeadDim = false, unitOffset = false }: LlamaVariant = {},
): Record<string, unknown> {
  const { ffn, headDim } = denseSizes(section), { hidden_size: hidden, num_attention_heads: heads } = section;
  const needed: Partial<ModelSection> = {
    norm_type: "rmsnorm",
    norm_head: false,
    qk_interleaved: false,
    use_dynamic_ntk_rope: false,
    use_swiglu: activations[0] === "silu",
    add_unit_offset: unitOffset,
    ...(!freeHeadDim && headDim * heads !== hidden && { head_dim: hidden / heads }),
  };
  for (const [name, value] of Object.entries(needed)) {
    const seen = section[name as keyof ModelSection];
    if (seen === value) continue;
    throw new RangeError(
      `Cannot write config.json: model.${name} is ${JSON.stringify(seen)}, and a Llama-shaped file can only tell of ` +
        JSON.stringify(value),
    );
  }
  return {
    vocab_size: section.vocab_size,
    hidden_size: section.hidden_size,
    intermediate_size: ffn,
    num_hidden_layers: section.num_layers,
    num_attention_heads: section.num_attention_heads,
    num_key_value_heads: section.num_kv_attention_heads,
    head_dim: headDim,
    hidden_act: activations[0],
    max_position_embeddings: section.max_position_embeddings,
    rms_norm_eps: section.layer_norm_epsilon,
    rope_theta: section.rope_base,
    rope_parameters: { rope_theta: section.rope_base, rope_type: "default" },
    tie_word_embeddings: section.tie_word_embeddings,
    torch_dtype: "float32",
  };
}
