/** Llama 2: grouped-query attention with separate query, key and value. */
import type { ModelFamily } from "../family.ts";
import { model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { huggingFace, internEvo } from "./weights.ts";

export const llama2: ModelFamily = { model, sharding, huggingFace, internEvo };
