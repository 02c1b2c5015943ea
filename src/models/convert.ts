/** Moves tensors between a weight format and canonical parameters, by the format's list of mappings. */
import { elementCount } from "../graph/graph.ts";
import type { MappedPart, TensorMapping } from "./family.ts";

const rowLength = ({ shape, width }: Pick<TensorMapping, "shape" | "width">) => width ?? elementCount(shape.slice(1));

/** Shape of the whole parameter that a file's tensor holds, all of it or a part. */
export function parameterShape({ shape }: Pick<TensorMapping, "shape">, part: MappedPart): readonly number[] {
  if (part.shape) return part.shape;
  if (part.slice) return [part.slice.of, ...shape];
  return part.rows ? [part.rows.length, ...shape.slice(1)] : shape;
}

/** Parameters held by one file tensor, by canonical name; of one that it holds a slice of, the slice. */
export function toParameters(
  mapping: TensorMapping,
  data: Float32Array<ArrayBuffer>,
): Map<string, Float32Array<ArrayBuffer>> {
  const width = rowLength(mapping);
  return new Map(mapping.parts.map(({ parameter, rows }) => {
    if (!rows) return [parameter, data];
    const values = new Float32Array(rows.length * width);
    rows.forEach((row, index) => values.set(data.subarray(row * width, (row + 1) * width), index * width));
    return [parameter, values];
  }));
}

/** Whole parameters as file tensors are read in order; one that many tensors hold comes with the last of them. */
export function* assembleParameters(
  mappings: readonly TensorMapping[],
  read: (mapping: TensorMapping) => Float32Array<ArrayBuffer>,
): Generator<[string, Float32Array<ArrayBuffer>]> {
  const pending = new Map<string, { values: Float32Array<ArrayBuffer>; missing: number }>();
  for (const mapping of mappings) {
    const held = toParameters(mapping, read(mapping));
    for (const part of mapping.parts) {
      const { parameter, slice } = part, values = held.get(parameter)!;
      if (!slice) {
        yield [parameter, values];
        continue;
      }
      const whole = pending.get(parameter) ??
        { values: new Float32Array(elementCount(parameterShape(mapping, part))), missing: slice.of };
      whole.values.set(values, slice.index * values.length);
      whole.missing--;
      pending.set(parameter, whole);
      if (whole.missing > 0) continue;
      pending.delete(parameter);
      yield [parameter, whole.values];
    }
  }
}

/** The file tensor that holds the given parameters. */
export function fromParameters(
  mapping: TensorMapping,
  parameters: (name: string) => Float32Array<ArrayBuffer>,
): Float32Array<ArrayBuffer> {
  const { shape, parts } = mapping, [{ parameter, rows, slice }] = parts as [MappedPart];
  if (slice) {
    const length = elementCount(shape);
    return parameters(parameter).slice(slice.index * length, (slice.index + 1) * length);
  }
  if (!rows) return parameters(parameter);
  const width = rowLength(mapping), values = new Float32Array(elementCount(shape));
  for (const { parameter, rows } of parts) {
    const source = parameters(parameter);
    rows!.forEach((row, index) => values.set(source.subarray(index * width, (index + 1) * width), row * width));
  }
  return values;
}
