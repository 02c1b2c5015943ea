/**
 * Where the optimizer's state lies: the moments of the parameters, or of those parts of them, that this rank updates, and
 * where the passes read parameters in a half type, their `float32` masters. Each of these has arenas of its own, no larger
 * than what is kept here, all laid out alike.
 */
import { Arenas } from "./arenas.ts";
import type { ParameterPlace } from "./plan.ts";

/** Ranges that a kernel binds begin at multiples of this. */
const alignBytes = 256;
/**
 * A part of a parameter begins at a multiple of so many elements, since a kernel binds it by itself, and what it is as a
 * half type too.
 */
export const partElements = alignBytes / 2;

/** Elements `begin` up to `end` of what a rank holds of a parameter. */
export interface ParameterPart {
  readonly name: string;
  /** A multiple of `partElements`. */
  readonly begin: number;
  /** Another such multiple, or the end of the parameter. */
  readonly end: number;
}

/** Where the state of a part lies; offset and size in bytes. */
export interface StatePlace extends ParameterPart {
  readonly arena: number;
  readonly offset: number;
  readonly bytes: number;
}

/** Parts that lie one after another both as gradients and as state, no more than a binding: updated by one dispatch. In bytes. */
export interface StateRun {
  readonly gradient: { readonly arena: number; readonly offset: number };
  readonly state: { readonly arena: number; readonly offset: number };
  readonly bytes: number;
  /** Whether this rank counts these gradients in the norm over all ranks. */
  readonly counted: boolean;
}

export interface StateLayout {
  readonly places: readonly StatePlace[];
  /** Bytes of each arena of one kind of state. */
  readonly arenas: readonly number[];
  readonly runs: readonly StateRun[];
}

const wholeParts = (parameters: readonly ParameterPlace[]): ParameterPart[] =>
  parameters.map(({ name, bytes }) => ({ name, begin: 0, end: bytes / 4 }));

/**
 * @param parts what this rank updates, in any order; everything if left out
 * @param counted whether this rank counts a parameter's gradient in the norm: those that others hold too are counted once
 */
export function placeState(
  parameters: readonly ParameterPlace[],
  { largest, largestBuffer = largest, alignment = alignBytes, parts = wholeParts(parameters), counted = () => true }: {
    /** Of a binding, and of an arena that holds more than one part. */
    largest: number;
    /** Of an arena that holds one part. @default `largest` */
    largestBuffer?: number;
    /** That of the gradients in their arenas, so that what is neighbours there is so here. */
    alignment?: number;
    parts?: readonly ParameterPart[];
    counted?: (name: string) => boolean;
  },
): StateLayout {
  const order = new Map(parameters.map((place, index) => [place.name, { place, index }]));
  const of = ({ name }: ParameterPart) => {
    const found = order.get(name);
    if (!found) throw new RangeError(`Cannot place the state of ${name}: the model has no such parameter`);
    return found;
  };
  const sorted = [...parts].filter(({ begin, end }) => end > begin)
    .sort((a, b) => of(a).index - of(b).index || a.begin - b.begin);
  const places: StatePlace[] = [], arenas = new Arenas(largest), runs: StateRun[] = [];
  for (const part of sorted) {
    const { place } = of(part), bytes = 4 * (part.end - part.begin), size = Math.ceil(bytes / alignment) * alignment;
    if (part.begin % partElements !== 0 || (part.end % partElements !== 0 && 4 * part.end !== place.bytes)) {
      throw new RangeError(
        `Cannot place elements ${part.begin} to ${part.end} of ${part.name}: parts begin at multiples of ${partElements}`,
      );
    }
    if (size > largestBuffer) {
      throw new RangeError(
        `Cannot place the state of ${part.name}: it takes ${size} bytes, one buffer holds at most ${largestBuffer}`,
      );
    }
    const { arena, offset } = arenas.place(size);
    places.push({ ...part, arena, offset, bytes });
    const most = Math.floor(largest / alignment) * alignment;
    for (let done = 0; done < size; done += most) {
      const run: StateRun = {
        gradient: { arena: place.arena, offset: place.offset + 4 * part.begin + done },
        state: { arena, offset: offset + done },
        bytes: Math.min(size - done, most),
        counted: counted(part.name),
      };
      const last = runs.at(-1);
      const goesOn = last && last.counted === run.counted && last.bytes + run.bytes <= largest &&
        (["gradient", "state"] as const).every((kind) =>
          last[kind].arena === run[kind].arena && last[kind].offset + last.bytes === run[kind].offset
        );
      if (goesOn) runs[runs.length - 1] = { ...last, bytes: last.bytes + run.bytes };
      else runs.push(run);
    }
  }
  return { places, arenas: arenas.bytes, runs };
}
