/** Models of the sizes that people compare, InternLM2-shaped, as changes of a run record. */

interface Size {
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
}

export const modelSizes = {
  "124M": { layers: 12, hidden: 768, heads: 12 },
  "350M": { layers: 24, hidden: 1024, heads: 16 },
  "1.3B": { layers: 24, hidden: 2048, heads: 16 },
} as const satisfies Readonly<Record<string, Size>>;

export type ModelSize = keyof typeof modelSizes;
export const modelSizeNames = Object.keys(modelSizes) as ModelSize[];

export const dtypes = ["float32", "split", "packed", "float16", "bfloat16", "tf32"] as const;
export type BenchType = typeof dtypes[number];

/** Untied, as the published figures have it. */
export const vocabulary = 50_304;

/**
 * Changes, as `--set` takes them, that store a model as `dtype`; `split`: `float32` on matrix units, each element in two
 * parts; `packed`: `float16` multiplied in pairs on vector units.
 */
export function typeSettings(dtype: BenchType): string[] {
  if (dtype === "split") return ["model.dtype=float32", "model.matmul_precision=split"];
  if (dtype === "packed") return ["model.dtype=float16", "model.matmul_precision=packed"];
  return [`model.dtype=${dtype}`];
}

/**
 * Changes, as `--set` takes them, that make a record one of these models, on made-up data.
 *
 * @param options `batch` rows of `tokens` tokens are one step
 *
 * @example
 * ```ts
 * import { modelSettings } from "./bench_models.ts";
 * console.assert(modelSettings("124M").includes("model.num_layers=12"));
 * ```
 */
export function modelSettings(size: ModelSize, { batch = 4, tokens = 1024 } = {}): string[] {
  const { layers, hidden, heads } = modelSizes[size];
  return [
    `JOB_NAME=${size}`,
    "model_type=INTERNLM2",
    `model.num_layers=${layers}`,
    `model.hidden_size=${hidden}`,
    `model.num_attention_heads=${heads}`,
    `model.num_kv_attention_heads=${heads}`,
    `model.vocab_size=${vocabulary}`,
    "model.mlp_ratio=8/3",
    "model.multiple_of=256",
    "model.no_bias=true",
    "data.train_folder=null",
    "data.valid_folder=null",
    "data.valid_every=0",
    `data.seq_len=${tokens}`,
    `data.micro_bsz=${batch}`,
    "data.micro_num=1",
  ];
}
