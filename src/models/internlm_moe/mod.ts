/** InternLM with experts: multi-head attention with biases, mixtures in place of the feed-forward layers. */
import type { ModelFamily } from "../family.ts";
import { model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { internEvo } from "./weights.ts";

export const internlmMoe: ModelFamily = { model, sharding, internEvo };
