/** When the backward pass is done with each gradient: what can be reduced while the rest is computed. */
import type { Instruction, Place, Plan } from "./plan.ts";

const placesOf = (instruction: Instruction): readonly Place[] =>
  instruction.kind === "dispatch" ? instruction.places : [instruction.source, instruction.target];

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
