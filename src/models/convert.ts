/** Moves tensors between a weight format and canonical parameters, by the format's list of mappings. */
import { elementCount } from "../graph/graph.ts";
import type { TensorMapping } from "./family.ts";

const rowLength = (shape: readonly number[]) => elementCount(shape.slice(1));

/** Parameters held by one file tensor, by canonical name. */
export function toParameters(
  { shape, parts }: TensorMapping,
  data: Float32Array<ArrayBuffer>,
): Map<string, Float32Array<ArrayBuffer>> {
  const width = rowLength(shape);
  return new Map(parts.map(({ parameter, rows }) => {
    if (!rows) return [parameter, data];
    const values = new Float32Array(rows.length * width);
    rows.forEach((row, index) => values.set(data.subarray(row * width, (row + 1) * width), index * width));
    return [parameter, values];
  }));
}

/** The file tensor that holds the given parameters. */
export function fromParameters(
  { shape, parts }: TensorMapping,
  parameters: (name: string) => Float32Array<ArrayBuffer>,
): Float32Array<ArrayBuffer> {
  if (!parts[0]!.rows) return parameters(parts[0]!.parameter);
  const width = rowLength(shape), values = new Float32Array(elementCount(shape));
  for (const { parameter, rows } of parts) {
    const source = parameters(parameter);
    rows!.forEach((row, index) => values.set(source.subarray(index * width, (index + 1) * width), row * width));
  }
  return values;
}
