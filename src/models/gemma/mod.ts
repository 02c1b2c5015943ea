/** Gemma: scaled embedding, norms that multiply by one plus their weight, a GELU gate, and heads of any width. */
import type { ModelFamily } from "../family.ts";
import { model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { huggingFace, internEvo } from "./weights.ts";

export const gemma: ModelFamily = { model, sharding, huggingFace, internEvo };
