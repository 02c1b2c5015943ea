/** When the backward pass is done with each gradient: what can be reduced while the rest is computed. */
import { elementBytes } from "../../kernels/kernel.ts";
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
    for (const { space, slot, offset: begin, bytes: length } of placesOf(instruction)) {
      if (space !== "parameter") continue;
      for (const { name, bytes: exact, read: { arena, offset, type } } of parameters) {
        const bytes = exact / 4 * elementBytes[type];
        if (arena === slot && offset < begin + length && begin < offset + bytes && !first.has(name)) {
          first.set(name, index);
        }
      }
    }
  });
  return first;
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
