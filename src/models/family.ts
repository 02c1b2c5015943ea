/** What a model family is: the contract between the registry and the trainer. */
import type { Graph, Tensor } from "../graph/graph.ts";
import type { ModelInputs } from "../nn/inputs.ts";
import type { ShardingPlan } from "../parallel/layout.ts";

/** The run record's `model` section, resolved: field names and meanings are InternEvo's. */
export interface ModelSection {
  readonly num_layers: number;
  readonly hidden_size: number;
  readonly num_attention_heads: number;
  readonly num_kv_attention_heads: number;
  readonly vocab_size: number;
  readonly mlp_ratio: number;
  readonly multiple_of: number;
  readonly norm_type: string;
  readonly layer_norm_epsilon: number;
  readonly no_bias: boolean;
  readonly embed_grad_scale: number;
  readonly norm_head: boolean;
  /** Width of a head; null for hidden_size / num_attention_heads. */
  readonly head_dim: number | null;
  /** Biases of q, k, v and of attention's output, for the families that choose them apart from `no_bias`. */
  readonly qkv_bias: boolean | null;
  readonly o_bias: boolean | null;
  readonly add_unit_offset: boolean;
  readonly use_swiglu: boolean;
  readonly gelu_approximate: string;
  readonly tie_word_embeddings: boolean;
  readonly num_experts: number;
  readonly top_k: number;
  readonly num_shared_experts: number;
  readonly moe_type: string;
  readonly moe_layer_kwargs: Readonly<Record<string, unknown>>;
  readonly qk_interleaved: boolean;
  readonly rope_base: number;
  readonly use_dynamic_ntk_rope: boolean;
  readonly max_position_embeddings: number;
  readonly drop_rate: number;
  readonly use_scaled_init: boolean;
  readonly init_type: string;
  readonly embedding_init_std: number;
  readonly attn_wqkv_init_std: number;
  readonly attn_other_init_std: number;
  readonly ffn_uplayer_init_std: number;
  readonly ffn_other_init_std: number;
  readonly out_head_init_std: number;
  /** Settings of a model from `runtime.plugins`, as they stand in the record. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** A parameter that a file's tensor holds, all of it or a part. */
export interface MappedPart {
  readonly parameter: string;
  /** Where the file fuses parameters: for each row of the parameter, the file's row. */
  readonly rows?: readonly number[];
  /** The parameter's shape, where it does not follow from the file's. */
  readonly shape?: readonly number[];
  /** The tensor is one of `of` along the parameter's first dimension: one expert of many. */
  readonly slice?: { readonly index: number; readonly of: number };
}

/** One tensor of a file and the parameters it holds. */
export interface TensorMapping {
  readonly tensor: string;
  readonly shape: readonly number[];
  /** Numbers in a row, where `rows` are not along the first dimension. @default all but the first dimension */
  readonly width?: number;
  readonly parts: readonly MappedPart[];
}

/** How a family's weights are written elsewhere; every direction follows from the same list. */
export interface WeightFormat {
  readonly tensors: (section: ModelSection) => readonly TensorMapping[];
}

export interface HuggingFaceFormat extends WeightFormat {
  /** Other ways in which the same weights are found in folders: they are read, never written. */
  readonly otherTensors?: (section: ModelSection) => readonly (readonly TensorMapping[])[];
  /** Whether a folder's `config.json` describes a model of this family. */
  readonly matches: (config: Readonly<Record<string, unknown>>) => boolean;
  /** The `model` section that describes the same model. */
  readonly toSection: (config: Readonly<Record<string, unknown>>) => Record<string, unknown>;
  /** The `config.json` that describes the same model. */
  readonly toConfig: (section: ModelSection) => Record<string, unknown>;
}

/** How a folder that has tensors of these names holds a model: the way that all its tensors fit, else the written one. */
export function tensorsIn(
  { tensors, otherTensors }: HuggingFaceFormat,
  section: ModelSection,
  names: Iterable<string>,
): readonly TensorMapping[] {
  const there = new Set(names), written = tensors(section);
  const fits = (mappings: readonly TensorMapping[]) => mappings.every(({ tensor }) => there.has(tensor));
  return fits(written) ? written : otherTensors?.(section).find(fits) ?? written;
}

export interface ModelFamily {
  /** Traces the model, as one device would run it. Returns logits `[tokens, vocabulary]`. */
  readonly model: (graph: Graph, inputs: ModelInputs, section: ModelSection) => Tensor;
  /** Where each parameter lives. */
  readonly sharding: ShardingPlan;
  readonly huggingFace?: HuggingFaceFormat;
  /** Names and fusions of InternEvo's own checkpoints. */
  readonly internEvo?: WeightFormat;
  /** Longest segment beyond which the rotary base follows the batch; see `declareRotaryTables`. */
  readonly dynamicRotary?: (section: ModelSection) => { beyond: number; base: number; headDim: number } | undefined;
}
