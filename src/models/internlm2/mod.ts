/** InternLM2: grouped-query attention, stored fused and grouped by key/value head. */
import type { ModelFamily } from "../family.ts";
import { model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { huggingFace, internEvo } from "./weights.ts";

export const internlm2: ModelFamily = { model, sharding, huggingFace, internEvo };
