/** What a rank puts into a checkpoint, and takes out of one. */
import type { Checkpoint, EntryKind, GlobalTensor, ShardEntry } from "../checkpoint/mod.ts";
import { entryKinds } from "../checkpoint/mod.ts";
import { elementCount } from "../graph/graph.ts";
import type { Model } from "./model.ts";

/** This rank's boxes of master weights and moments; each is read from the device when the writer gets there. */
export function shardEntries({ program, boxes }: Model): ShardEntry[] {
  return [...boxes].flatMap(([name, box]) =>
    entryKinds.map((kind) => ({
      kind,
      name,
      ...box,
      data: async function* () {
        yield await program.readParameter(kind, name);
      },
    }))
  );
}

/** Every global tensor that the shards of all ranks hold together. */
export function globalTensors({ boxes }: Model): GlobalTensor[] {
  return [...boxes].flatMap(([name, { shape }]) => entryKinds.map((kind) => ({ kind, name, shape })));
}

/**
 * Writes this rank's boxes into the model. All shapes are checked before the first is written.
 *
 * @param kinds what to take; without the moments, the optimizer starts afresh
 * @throws {RangeError} naming tensors that are missing, have another shape, or belong to no parameter of the model
 */
export function loadTensors(
  { program, boxes }: Model,
  checkpoint: Checkpoint,
  kinds: readonly EntryKind[] = entryKinds,
): void {
  const differing = differences(boxes, checkpoint, kinds);
  if (differing.length > 0) {
    const more = differing.length > 3 ? `; and ${differing.length - 3} more` : "";
    throw new RangeError(
      `Cannot load checkpoint ${checkpoint.directory}: it is of another model: ${
        differing.slice(0, 3).join("; ")
      }${more}`,
    );
  }
  for (const kind of kinds) {
    for (const [name, box] of boxes) {
      const values = new Float32Array(elementCount(box.extent));
      checkpoint.readBox(kind, name, box, values);
      program.writeParameter(kind, name, values);
    }
  }
}

function differences(boxes: Model["boxes"], checkpoint: Checkpoint, kinds: readonly EntryKind[]): string[] {
  return kinds.flatMap((kind) => [
    ...[...boxes].flatMap(([name, { shape }]) => {
      const stored = checkpoint.shape(kind, name);
      if (String(stored) === String(shape)) return [];
      return [`${kind} ${name} is ${stored ? `[${stored}]` : "not"} there, [${shape}] in this model`];
    }),
    ...checkpoint.names(kind).filter((name) => !boxes.has(name)).map((name) =>
      `${kind} ${name} [${checkpoint.shape(kind, name)}] is in no place of this model`
    ),
  ]);
}
