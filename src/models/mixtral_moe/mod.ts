/** Mixtral: grouped-query attention, mixtures in place of the feed-forward layers. */
import type { ModelFamily } from "../family.ts";
import { model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { huggingFace, internEvo } from "./weights.ts";

export const mixtralMoe: ModelFamily = { model, sharding, huggingFace, internEvo };
