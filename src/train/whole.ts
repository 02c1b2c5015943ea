/** Tensors that ranks hold parts of, whole: cut on their way in, put together on their way out. */
import { elementCount } from "../graph/graph.ts";
import type { TensorKind } from "../graph/program.ts";
import { boxOf, divisions, type Layout, type Split } from "../parallel/layout.ts";
import type { Axis } from "../parallel/mesh.ts";
import type { World } from "../parallel/world.ts";
import type { Model } from "./model.ts";

/** Runs of a part that lie apart in the whole: one for each index of the dimensions before the one that is divided. */
const runsOf = (shape: readonly number[], { dimension }: Split) => elementCount(shape.slice(0, dimension));

/** Each division that is one, with the shape of what it divides. */
function steps(
  world: World,
  shape: readonly number[],
  layout: Layout,
): { shape: readonly number[]; division: Split }[] {
  return divisions(layout).flatMap(({ dimension, axis }) => {
    const of = shape, parts = world.mesh.size(axis);
    shape = shape.with(dimension, shape[dimension]! / parts);
    return parts === 1 ? [] : [{ shape: of, division: { kind: "split", dimension, axis } as const }];
  });
}

/** A tensor of which this rank has a part; `shape` is that of the whole. */
export interface HeldPart {
  readonly shape: readonly number[];
  readonly layout: Layout;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/**
 * Every tensor whole, on every rank that has a part of it; one exchange an axis. What is whole already stays as it is.
 * All ranks of the axes must ask for the same.
 */
export async function putTogether(world: World, held: readonly HeldPart[]): Promise<Uint8Array<ArrayBuffer>[]> {
  const whole = held.map(({ bytes }) => bytes), left = held.map(({ shape, layout }) => steps(world, shape, layout));
  for (;;) { // the last divisions first
    const axes = Map.groupBy(held.keys(), (index) => left[index]!.at(-1)?.division.axis);
    axes.delete(undefined);
    if (axes.size === 0) return whole;
    for (const [axis, indices] of axes) await join(axis!, indices);
  }

  async function join(axis: Axis, indices: readonly number[]): Promise<void> {
    const group = world.group(axis), parts = group.ranks.length;
    const own = indices.reduce((sum, index) => sum + whole[index]!.length, 0), all = new Uint8Array(own * parts);
    let at = own * group.index;
    for (const index of indices) {
      all.set(whole[index]!, at);
      at += whole[index]!.length;
    }
    await group.allGather(all);
    let first = 0;
    for (const index of indices) {
      const { shape, division } = left[index]!.pop()!, bytes = whole[index]!;
      const result = new Uint8Array(bytes.length * parts),
        outer = runsOf(shape, division),
        inner = bytes.length / outer;
      for (let part = 0; part < parts; part++) {
        for (let o = 0; o < outer; o++) {
          const from = part * own + first + o * inner;
          result.set(all.subarray(from, from + inner), (o * parts + part) * inner);
        }
      }
      whole[index] = result;
      first += bytes.length;
    }
  }
}

/** This rank's part of a tensor of `shape`. */
export function cutPart(values: Float32Array<ArrayBuffer>, shape: readonly number[], layout: Layout, world: World) {
  for (const { shape: of, division } of steps(world, shape, layout)) {
    const { extent } = boxOf(of, division, world.mesh), parts = world.mesh.size(division.axis);
    const own = new Float32Array(elementCount(extent)), outer = runsOf(of, division), inner = own.length / outer;
    for (let o = 0; o < outer; o++) {
      const from = (o * parts + world.mesh.index(division.axis)) * inner;
      own.set(values.subarray(from, from + inner), o * inner);
    }
    values = own;
  }
  return values;
}

/** Writes this rank's part of a parameter, or of what mirrors it, from the whole of it. */
export function writeWhole(
  { program, boxes, layouts, world }: Model,
  kind: TensorKind,
  name: string,
  values: Float32Array<ArrayBuffer>,
): void {
  const { shape } = boxes.get(name)!;
  if (values.length !== elementCount(shape)) {
    throw new RangeError(`Cannot write ${kind} ${name}: it holds ${elementCount(shape)} numbers, got ${values.length}`);
  }
  program.writeParameter(kind, name, cutPart(values, shape, layouts.get(name)!, world));
}

/**
 * Reads all that this rank holds of a parameter, or of what mirrors it. Masters and moments are with the ranks that update
 * them: all ranks that divide the state must ask for the same.
 */
export async function readHeld(
  { program, zero, world }: Pick<Model, "program" | "zero" | "world">,
  kind: TensorKind,
  name: string,
): Promise<Float32Array<ArrayBuffer>> {
  const { division = [], partition } = zero.find((group) => group.division.some((part) => part.name === name)) ?? {};
  const divided = kind !== "gradient" && (kind !== "parameter" || program.plan.modelType !== undefined);
  if (!divided || partition === undefined || world.mesh.size(partition) === 1) {
    return await program.readParameter(kind, name);
  }
  const group = world.group(partition), parts = division.filter((part) => part.name === name);
  const values = new Float32Array(Math.max(...parts.map(({ end }) => end)));
  // Parts lie in the order of their owners, one an owner at most.
  const counts = group.ranks.map((_, index) => {
    const part = parts.find(({ owner }) => owner === index);
    return part ? part.end - part.begin : 0;
  });
  for (const part of parts.filter(({ owner }) => owner === group.index)) {
    values.set(await program.readPart(kind, part), part.begin);
  }
  await group.allGather(values, counts);
  return values;
}

/** Reads the whole of a parameter, or of what mirrors it: as `readHeld`, and all ranks of its axes must ask too. */
export async function readWhole(
  model: Model,
  kind: TensorKind,
  name: string,
): Promise<Float32Array<ArrayBuffer>> {
  const { boxes, layouts, world } = model, values = await readHeld(model, kind, name);
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const [whole] = await putTogether(world, [{ shape: boxes.get(name)!.shape, layout: layouts.get(name)!, bytes }]);
  return new Float32Array(whole!.buffer, whole!.byteOffset, whole!.byteLength / 4);
}
