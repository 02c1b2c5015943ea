/** What a rank puts into a checkpoint, and takes out of one. */
import type { Checkpoint, EntryKind, GlobalTensor, ShardEntry } from "../checkpoint/mod.ts";
import { boxesOfFlatRange, entryKinds } from "../checkpoint/mod.ts";
import { elementCount } from "../graph/graph.ts";
import type { ParameterPart } from "../graph/optimizer_state.ts";
import type { Box } from "../parallel/layout.ts";
import { isFirstHolder } from "../parallel/modes.ts";
import type { Model } from "./model.ts";

/**
 * What this rank writes of `float32` parameters and moments: the parts that it updates, each written by the first of the ranks
 * that do. They are read from the device when the writer gets there.
 */
export function shardEntries({ program, boxes, layouts, mode, zero, stage, world: { mesh } }: Model): ShardEntry[] {
  const elsewhere = new Set(
    stage.shared.filter(({ stages }) => stages[0] !== mesh.index("pipeline")).map(({ name }) => name),
  );
  return zero.flatMap(({ division, reduce, partition }) =>
    mesh.index(reduce) >= mesh.size(partition) ? [] : division
      .filter(({ owner, name }) =>
        owner === mesh.index(partition) && !elsewhere.has(name) && isFirstHolder(mode, layouts.get(name)!, mesh)
      )
      .flatMap((part) =>
        entryKinds.flatMap((kind) => {
          let read: Promise<Float32Array<ArrayBuffer>> | undefined; // a part may be several boxes, and is read once
          return partBoxes(part, boxes.get(part.name)!).map(({ box, begin, end }) => ({
            kind,
            name: part.name,
            ...box,
            data: async function* () {
              const values = await (read ??= program.readPart(kind, part));
              if (end === values.length) read = undefined;
              yield values.subarray(begin, end);
            },
          }));
        })
      )
  );
}

/** The boxes of the global tensor that a part of a rank's box is; `begin` and `end` within the part. */
function partBoxes({ begin, end }: ParameterPart, whole: Box): { box: Box; begin: number; end: number }[] {
  let at = 0;
  return boxesOfFlatRange(whole.extent, begin, end).map(({ offset, extent }) => {
    const first = at;
    at += elementCount(extent);
    return {
      box: { shape: whole.shape, offset: offset.map((index, axis) => index + whole.offset[axis]!), extent },
      begin: first,
      end: at,
    };
  });
}

/** Every global tensor that the shards of all ranks hold together. */
export function globalTensors({ shapes }: Model): GlobalTensor[] {
  return [...shapes].flatMap(([name, shape]) => entryKinds.map((kind) => ({ kind, name, shape })));
}

/**
 * Writes this rank's boxes into the model, and of the moments the parts that it updates. All shapes are checked before the first is written.
 *
 * @param kinds what to take; without the moments, the optimizer starts afresh
 * @throws {RangeError} naming tensors that are missing, have another shape, or belong to no parameter of the model
 */
export function loadTensors(
  { program, boxes, shapes }: Pick<Model, "program" | "boxes" | "shapes">,
  checkpoint: Checkpoint,
  kinds: readonly EntryKind[] = entryKinds,
): void {
  const differing = differences(shapes, checkpoint, kinds);
  if (differing.length > 0) {
    const more = differing.length > 3 ? `; and ${differing.length - 3} more` : "";
    throw new RangeError(
      `Cannot load checkpoint ${checkpoint.directory}: it is of another model: ${
        differing.slice(0, 3).join("; ")
      }${more}`,
    );
  }
  for (const kind of kinds) {
    if (kind === "parameter") {
      for (const [name, box] of boxes) {
        const values = new Float32Array(elementCount(box.extent));
        checkpoint.readBox(kind, name, box, values);
        program.writeParameter(kind, name, values);
      }
      continue;
    }
    for (const part of program.plan.state.places) {
      const values = new Float32Array(part.end - part.begin);
      for (const { box, begin, end } of partBoxes(part, boxes.get(part.name)!)) {
        checkpoint.readBox(kind, part.name, box, values.subarray(begin, end));
      }
      program.backend.upload(program.partRange(kind, part), values);
    }
  }
}

function differences(shapes: Model["shapes"], checkpoint: Checkpoint, kinds: readonly EntryKind[]): string[] {
  return kinds.flatMap((kind) => [
    ...[...shapes].flatMap(([name, shape]) => {
      const stored = checkpoint.shape(kind, name);
      if (String(stored) === String(shape)) return [];
      return [`${kind} ${name} is ${stored ? `[${stored}]` : "not"} there, [${shape}] in this model`];
    }),
    ...checkpoint.names(kind).filter((name) => !shapes.has(name)).map((name) =>
      `${kind} ${name} [${checkpoint.shape(kind, name)}] is in no place of this model`
    ),
  ]);
}
