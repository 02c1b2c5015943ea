/** A run that begins from the weights of a Hugging Face folder. */
import { HuggingFaceFolder, parseStoragePath } from "../checkpoint/mod.ts";
import { resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { type HuggingFaceFormat, tensorsIn } from "../models/family.ts";
import { moduleNames } from "../models/registry.ts";
import type { Model } from "./model.ts";
import { importWeights } from "./weights.ts";

/**
 * @throws {RangeError} where the record describes another model than the folder's `config.json`, with each field that
 * differs
 */
export function expectSameModel(source: HuggingFaceFolder, config: ResolvedConfig, format: HuggingFaceFormat): void {
  const where = `${source.folder}/config.json`;
  if (!format.matches(source.config)) {
    throw new RangeError(
      `${where} is of model_type ${JSON.stringify(source.config.model_type)}, which the record's ` +
        `model_type ${config.model_type} does not read`,
    );
  }
  const section = format.toSection(source.config);
  const { model } = resolveConfig({
    model_type: config.model_type,
    model: section,
    data: { seq_len: 1, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1 },
    ckpt: { enable_save_ckpt: false },
  }, { modelTypes: moduleNames(), allowRefused: true });
  const stated = format.toConfig(model), wanted = configOf(config, format, where);
  const differing = Object.keys(stated).filter((key) =>
    key !== "max_position_embeddings" && JSON.stringify(stated[key]) !== JSON.stringify(wanted[key])
  ).map((key) => `${key} is ${JSON.stringify(stated[key])} there, ${JSON.stringify(wanted[key])} in the record`);
  if (differing.length > 0) {
    throw new RangeError(
      `The record describes another model than ${where}: ${differing.join("; ")}. ` +
        `A record with this section would work: model: ${JSON.stringify(section)}`,
    );
  }
}

function configOf(config: ResolvedConfig, format: HuggingFaceFormat, where: string): Record<string, unknown> {
  try {
    return format.toConfig(config.model);
  } catch (error) {
    const [, reason] = (error as Error).message.split(/: (.*)/s);
    throw new RangeError(`The record describes another model than ${where}: ${reason}`, { cause: error });
  }
}

/**
 * Replaces the model's weights by those of a Hugging Face folder. Nothing is written unless all of it fits.
 *
 * @returns what was loaded, for people
 * @throws {RangeError} where `config.json` describes another model, naming each difference; where tensors do not fit
 */
export function loadHuggingFace(model: Model, path: string): string {
  const { family: { huggingFace }, config } = model, folder = parseStoragePath(path);
  if (!huggingFace) {
    throw new RangeError(`Cannot load ${folder}: model type ${config.model_type} declares no Hugging Face format`);
  }
  using source = HuggingFaceFolder.open(folder);
  expectSameModel(source, config, huggingFace);
  const mappings = tensorsIn(huggingFace, config.model, source.names);
  importWeights(model, mappings, source);
  return `the model of Hugging Face folder ${folder} (${mappings.length} tensors)`;
}
