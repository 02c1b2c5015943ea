/** InternLM (v1): multi-head attention with biases on query, key, value and output. */
import type { ModelFamily } from "../family.ts";
import { dynamicRotary, model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { huggingFace, internEvo } from "./weights.ts";

export const internlm: ModelFamily = { model, sharding, huggingFace, internEvo, dynamicRotary };
