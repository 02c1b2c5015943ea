/** When the backward pass is done with each gradient: what can be reduced while the rest is computed. */
import type { Instruction, ParameterPlace, Place, Plan, SegmentName } from "./plan.ts";

const placesOf = (instruction: Instruction): readonly Place[] =>
  instruction.kind === "dispatch" ? instruction.places : [instruction.source, instruction.target];

/** Notes that instruction `index` touches gradients, of a whole parameter, of some of its rows, or of several side by side. */
function touch(
  last: Map<string, number>,
  parameters: readonly ParameterPlace[],
  instruction: Instruction,
  index: number,
): void {
  for (const { space, slot, offset: begin, bytes: length } of placesOf(instruction)) {
    if (space !== "gradient") continue;
    for (const { name, arena, offset, bytes } of parameters) {
      if (arena === slot && offset < begin + length && begin < offset + bytes) last.set(name, index);
    }
  }
}

/** Of each parameter, the number of the segment's last instruction that touches its gradient. */
export function lastTouches(
  { segments, parameters }: Pick<Plan, "segments" | "parameters">,
  segment: SegmentName,
): Map<string, number> {
  const last = new Map<string, number>();
  segments[segment].instructions.forEach((instruction, index) => touch(last, parameters, instruction, index));
  return last;
}

/** Of each parameter that a segment reads, in whichever type, the number of the first instruction that does. */
export function firstReads(
  { segments, parameters }: Pick<Plan, "segments" | "parameters">,
  segment: SegmentName,
): Map<string, number> {
  const first = new Map<string, number>();
  segments[segment].instructions.forEach((instruction, index) => {
    for (const { space, slot, offset, bytes } of placesOf(instruction)) {
      if (space !== "parameter" && space !== "model") continue;
      const scale = space === "model" ? 2 : 1, begin = offset * scale, end = (offset + bytes) * scale;
      for (const { name, arena, offset, bytes } of parameters) {
        if (arena === slot && offset < end && begin < offset + bytes && !first.has(name)) first.set(name, index);
      }
    }
  });
  return first;
}

/** Parameters of which segments read the copy in the model's half type alone, and never the `float32` one. */
export function readAsHalf({ segments, parameters, modelType }: Pick<Plan, "segments" | "parameters" | "modelType">) {
  const half = new Set(modelType ? parameters.map(({ name }) => name) : []);
  for (const { instructions } of half.size > 0 ? Object.values(segments) : []) {
    for (const { space, slot, offset, bytes } of instructions.flatMap(placesOf)) {
      if (space !== "parameter") continue;
      for (const place of parameters) {
        const { name, arena } = place;
        if (arena === slot && place.offset < offset + bytes && offset < place.offset + place.bytes) half.delete(name);
      }
    }
  }
  return half;
}

/** Parameters in the order in which the backward pass touches their gradients for the last time. */
export function gradientOrder({ segments, parameters }: Pick<Plan, "segments" | "parameters">): string[] {
  const last = new Map<string, number>();
  let index = 0;
  for (const [name, { instructions }] of Object.entries(segments)) {
    if (!name.startsWith("backward")) continue;
    for (const instruction of instructions) touch(last, parameters, instruction, index++);
  }
  const done = ({ name }: ParameterPlace) => last.get(name) ?? -1;
  return [...parameters].sort((a, b) => done(a) - done(b)).map(({ name }) => name);
}
