/** Moves weights between a model and files in any of its family's formats. */
import { elementCount } from "../graph/graph.ts";
import { fromParameters, toParameters } from "../models/convert.ts";
import type { TensorMapping } from "../models/family.ts";
import type { Model } from "./model.ts";

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
    throw new RangeError(
      `Cannot import weights: ${extra.length} tensors belong to no parameter of ${model.config.model_type}, ` +
        `such as ${extra.slice(0, 3).join(", ")}`,
    );
  }
  for (const mapping of mappings) {
    const data = source.readFloat32(mapping.tensor, new Float32Array(elementCount(mapping.shape)));
    for (const [name, values] of toParameters(mapping, data as Float32Array<ArrayBuffer>)) {
      model.program.writeParameter("parameter", name, values);
    }
  }
}

/** Reads one file tensor's content out of the model. */
export async function exportTensor(model: Model, mapping: TensorMapping): Promise<Float32Array<ArrayBuffer>> {
  const parameters = new Map<string, Float32Array<ArrayBuffer>>();
  for (const { parameter } of mapping.parts) {
    parameters.set(parameter, await model.program.readParameter("parameter", parameter));
  }
  return fromParameters(mapping, (name) => parameters.get(name)!);
}

/** Euclidean length, summed in double. */
export function norm(values: Float32Array): number {
  let sum = 0;
  for (const value of values) sum += value * value;
  return Math.sqrt(sum);
}
