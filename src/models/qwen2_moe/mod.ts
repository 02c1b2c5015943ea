/** Qwen2 with experts: biases on query, key and value, and a shared expert that joins by a gate of its own. */
import type { ModelFamily } from "../family.ts";
import { model } from "./model.ts";
import { sharding } from "./sharding.ts";
import { huggingFace } from "./weights.ts";

export const qwen2Moe: ModelFamily = { model, sharding, huggingFace };
