/** Shared by the tests of this folder. */
import type { Box } from "./box.ts";
import { wholeBox } from "./box.ts";
import { elementCount } from "./safetensors.ts";
import { beginCheckpoint, commitCheckpoint, type ShardEntry, writeShard } from "./save.ts";
import { entryKinds, type GlobalTensor } from "./manifest.ts";

/** A small linear congruential generator, so that failures repeat. */
export function randomIntegers(seed: number): (below: number) => number {
  let state = BigInt(seed);
  return (below) => {
    state = (state * 6364136223846793005n + 1442695040888963407n) & 0xffffffffffffffffn;
    return Number((state >> 33n) % BigInt(below));
  };
}

export async function withTempDir(run: (directory: string) => unknown): Promise<void> {
  const directory = await Deno.makeTempDir({ prefix: "troupe-checkpoint-" });
  try {
    await run(directory);
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

export const shapes: Readonly<Record<string, readonly number[]>> = {
  "layers.0.attention.wq.weight": [6, 4],
  "layers.0.experts": [3, 4, 5],
  "norm.weight": [7],
  "scale": [],
};

export const tensors: readonly GlobalTensor[] = entryKinds.flatMap((kind) =>
  Object.entries(shapes).map(([name, shape]) => ({ kind, name, shape }))
);

/** What the element at a flat index of a tensor holds at a step; all tensors and steps differ. */
export function valueAt(tensor: GlobalTensor, step: number, index: number): number {
  return step * 10_000 + tensors.findIndex(({ kind, name }) => kind === tensor.kind && name === tensor.name) * 100 +
    index;
}

/** Global flat indices of a box in its own row-major order, written apart from the code under test. */
export function flatIndices(shape: readonly number[], { offset, extent }: Box): number[] {
  let list = [0];
  for (let axis = 0; axis < shape.length; axis++) {
    list = list.flatMap((base) =>
      Array.from({ length: extent[axis] }, (_, i) => base * shape[axis] + offset[axis] + i)
    );
  }
  return list;
}

export function boxValues(tensor: GlobalTensor, step: number, box: Box): Float32Array {
  return new Float32Array(flatIndices(tensor.shape, box).map((index) => valueAt(tensor, step, index)));
}

/** How a run of some writers cuts a tensor: a box for some of them. */
export type Layout = (shape: readonly number[], writer: number) => Box[];

export function splitAxis(axis: number, parts: number): Layout {
  return (shape, writer) => {
    if (shape.length === 0 || elementCount(shape) === 0) return writer === 0 ? [wholeBox(shape)] : [];
    const along = Math.min(axis, shape.length - 1);
    const begin = Math.floor(shape[along] * writer / parts);
    const end = Math.floor(shape[along] * (writer + 1) / parts);
    if (begin === end) return [];
    const offset = shape.map((_, i) => i === along ? begin : 0);
    return [{ offset, extent: shape.map((size, i) => i === along ? end - begin : size) }];
  };
}

export function entriesOf(step: number, layout: Layout, writer: number): ShardEntry[] {
  return tensors.flatMap((tensor) =>
    layout(tensor.shape, writer).map((box) => ({ ...tensor, ...box, data: boxValues(tensor, step, box) }))
  );
}

/** Saves a step with several writers, as a run does. */
export async function save(folder: string, step: number, layout: Layout, writers: number): Promise<string> {
  const directory = await beginCheckpoint(folder, step);
  const shards = await Promise.all(
    Array.from(
      { length: writers },
      (_, writer) => writeShard({ directory, writer, entries: entriesOf(step, layout, writer) }),
    ),
  );
  return commitCheckpoint({
    directory,
    step,
    shards,
    tensors,
    layout: { writers },
    state: { position: step * 8 },
    config: `step: ${step}\n`,
  });
}
