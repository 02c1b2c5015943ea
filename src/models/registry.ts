/** Model families by the name that `model_type` gives. */
import type { ModelFamily } from "./family.ts";
import { gemma } from "./gemma/mod.ts";
import { internlm } from "./internlm/mod.ts";
import { internlm2 } from "./internlm2/mod.ts";
import { internlmMoe } from "./internlm_moe/mod.ts";
import { llama2 } from "./llama2/mod.ts";
import { mixtralMoe } from "./mixtral_moe/mod.ts";
import { qwen2 } from "./qwen2/mod.ts";
import { qwen2Moe } from "./qwen2_moe/mod.ts";

/** The built-in ones; plugins add theirs. */
const families = new Map<string, ModelFamily>([
  ["INTERNLM", internlm],
  ["INTERNLM2", internlm2],
  ["INTERNLM2_PUBLIC", internlm2],
  ["LLAMA2", llama2],
  ["QWEN2", qwen2],
  ["GEMMA", gemma],
  ["INTERNLM_MoE", internlmMoe],
  ["MIXTRALMOE", mixtralMoe],
  ["QWEN2MOE", qwen2Moe],
]);

/**
 * Registers a family. The first registration of a name wins, as in InternEvo, so a plugin cannot replace a built-in.
 *
 * @returns whether the name was free
 */
export function registerModule(name: string, family: ModelFamily): boolean {
  if (families.has(name)) return false;
  families.set(name, family);
  return true;
}

export const hasModule = (name: string): boolean => families.has(name);
export const moduleNames = (): string[] => [...families.keys()];

/** @throws {ReferenceError} for an unknown name, listing the known ones. */
export function getModule(name: string): ModelFamily {
  const family = families.get(name);
  if (!family) {
    throw new ReferenceError(
      `Cannot find model type ${name}: known are ${
        moduleNames().join(", ")
      }; a module in runtime.plugins can add others`,
    );
  }
  return family;
}

/**
 * The model type that a Hugging Face `config.json` describes.
 *
 * @throws {RangeError} when no registered family does, naming the file's own type.
 */
export function modelTypeOf(config: Readonly<Record<string, unknown>>): string {
  for (const [name, family] of families) if (family.huggingFace?.matches(config)) return name;
  throw new RangeError(
    `Cannot tell the model type: no family reads model_type ${JSON.stringify(config.model_type)} of config.json; ` +
      `known are ${moduleNames().join(", ")}`,
  );
}
