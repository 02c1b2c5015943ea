/** When the backward pass is done with each gradient: what can be reduced while the rest is computed. */
import type { Instruction, Place, Plan, SegmentName } from "./plan.ts";

const placesOf = (instruction: Instruction): readonly Place[] =>
  instruction.kind === "dispatch" ? instruction.places : [instruction.source, instruction.target];

/** Of each parameter, the number of the segment's last instruction that touches its gradient. */
export function lastTouches(
  { segments, parameters }: Pick<Plan, "segments" | "parameters">,
  segment: SegmentName,
): Map<string, number> {
  const last = new Map<string, number>();
  segments[segment].instructions.forEach((instruction, index) => {
    for (const { space, slot, offset } of placesOf(instruction)) {
      if (space === "gradient") last.set(`${slot} ${offset}`, index);
    }
  });
  return new Map(parameters.flatMap(({ name, arena, offset }) => {
    const index = last.get(`${arena} ${offset}`);
    return index === undefined ? [] : [[name, index] as const];
  }));
}

/** Parameters in the order in which the backward pass touches their gradients for the last time. */
export function gradientOrder({ segments, parameters }: Pick<Plan, "segments" | "parameters">): string[] {
  const last = new Map<string, number>();
  let index = 0;
  for (const [name, { instructions }] of Object.entries(segments)) {
    if (!name.startsWith("backward")) continue;
    for (const instruction of instructions) {
      for (const { space, slot, offset } of placesOf(instruction)) {
        if (space === "gradient") last.set(`${slot} ${offset}`, index);
      }
      index++;
    }
  }
  const done = ({ arena, offset }: Plan["parameters"][number]) => last.get(`${arena} ${offset}`) ?? -1;
  return [...parameters].sort((a, b) => done(a) - done(b)).map(({ name }) => name);
}
