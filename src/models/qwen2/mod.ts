/** Qwen2: grouped-query attention with biases on query, key and value, and none on the output. */
import type { ModelFamily } from "../family.ts";
import { model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { huggingFace, internEvo } from "./weights.ts";

export const qwen2: ModelFamily = { model, sharding, huggingFace, internEvo };
