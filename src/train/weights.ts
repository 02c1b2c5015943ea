/** Moves weights between a model and files in any of its family's formats. */
import { writeHuggingFace } from "../checkpoint/mod.ts";
import { elementCount } from "../graph/graph.ts";
import type { TensorKind } from "../graph/program.ts";
import { assembleParameters, fromParameters } from "../models/convert.ts";
import type { TensorMapping } from "../models/family.ts";
import type { Model } from "./model.ts";
import { readWhole, writeWhole } from "./whole.ts";

/** Where tensors are read from: a Hugging Face folder, or a file. */
export interface WeightSource {
  readonly names: Iterable<string>;
  /** @throws {RangeError} with both shapes when the tensor is missing or of another shape. */
  expectTensor(name: string, shape: readonly number[]): void;
  readFloat32(name: string, into?: Float32Array): Float32Array;
}

/** Tensors that carry no weight: tables that Hugging Face's older exports keep. */
const ignored = /rotary_emb\.inv_freq$/;

/**
 * Replaces every parameter of the model. All shapes are checked before the first is written.
 *
 * @throws {RangeError} when a tensor is missing, has another shape, or belongs to no parameter
 */
export function importWeights(model: Model, mappings: readonly TensorMapping[], source: WeightSource): void {
  mappings.forEach(({ tensor, shape }) => source.expectTensor(tensor, shape));
  const known = new Set(mappings.map(({ tensor }) => tensor));
  const extra = [...source.names].filter((name) => !known.has(name) && !ignored.test(name));
  if (extra.length > 0) {
    const count = extra.length === 1 ? "1 tensor belongs" : `${extra.length} tensors belong`;
    throw new RangeError(
      `Cannot import weights: ${count} to no parameter of ${model.config.model_type}: ` +
        `${extra.slice(0, 3).join(", ")}${extra.length > 3 ? ", …" : ""}`,
    );
  }
  const read = ({ tensor, shape }: TensorMapping) =>
    source.readFloat32(tensor, new Float32Array(elementCount(shape))) as Float32Array<ArrayBuffer>;
  for (const [name, values] of assembleParameters(mappings, read)) {
    if (model.boxes.has(name)) writeWhole(model, "parameter", name, values); // else another stage's
  }
}

/** A whole parameter, or what mirrors it. In a pipeline all stages must ask, and all get it. */
async function wholeTensor(model: Model, kind: TensorKind, name: string): Promise<Float32Array<ArrayBuffer>> {
  const { shapes, boxes, stage, world } = model;
  if (world.mesh.size("pipeline") === 1) return await readWhole(model, kind, name);
  const shared = stage.shared.find((each) => each.name === name);
  const holds = boxes.has(name) && (!shared || shared.stages[0] === world.mesh.index("pipeline"));
  const whole = holds ? await readWhole(model, kind, name) : new Float32Array(elementCount(shapes.get(name) ?? [0]));
  await world.group("pipeline").allReduce(whole);
  return whole;
}

/**
 * Reads one file tensor's content out of the model: its weight, or what mirrors it (its gradient, its moments). Ranks
 * that hold parts of it, and in a pipeline all stages, must ask together, and all get it.
 */
export async function exportTensor(
  model: Model,
  mapping: TensorMapping,
  kind: TensorKind = "parameter",
): Promise<Float32Array<ArrayBuffer>> {
  const parameters = new Map<string, Float32Array<ArrayBuffer>>();
  for (const { parameter } of mapping.parts) {
    parameters.set(parameter, await wholeTensor(model, kind, parameter));
  }
  return fromParameters(mapping, (name) => parameters.get(name)!);
}

/**
 * Writes the model as a Hugging Face folder. Tensors are read from the device one by one, when the writer gets there.
 *
 * @param options `maxShardBytes`: a file holds no more than this, save one tensor that alone is larger; 10 GB if left out
 * @returns the names of the weight files
 * @throws {RangeError} when the model's family has no Hugging Face format
 */
export function exportHuggingFace(
  model: Model,
  folder: string,
  options: { readonly maxShardBytes?: number } = {},
): Promise<string[]> {
  const { family, config } = model;
  if (!family.huggingFace) {
    throw new RangeError(
      `Cannot export to ${folder}: model type ${config.model_type} declares no Hugging Face format; ` +
        "a family with `huggingFace` would work",
    );
  }
  const { toConfig, tensors } = family.huggingFace;
  return writeHuggingFace(folder, {
    ...options,
    config: toConfig(config.model),
    tensors: tensors(config.model).map((mapping) => ({
      name: mapping.tensor,
      dtype: "F32" as const,
      shape: mapping.shape,
      data: async function* () {
        yield await exportTensor(model, mapping);
      },
    })),
  });
}

/** Euclidean length, summed in double. */
export function norm(values: Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value * value;
  return Math.sqrt(sum);
}
