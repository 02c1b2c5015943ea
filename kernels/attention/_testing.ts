/** What tests of attention compute with. */
import { randomNormal } from "../testing.ts";
import type { AttentionOptions } from "./mod.ts";

/** Drawn operands for segments of these lengths, one after the other: rows of tokens by heads by head size, and bounds. */
export function inputsOf(
  { heads, kvHeads, headDim }: Pick<AttentionOptions, "heads" | "kvHeads" | "headDim">,
  lengths: readonly number[],
) {
  const ends = lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b, 0)), tokens = ends.at(-1)!;
  const segment = Array.from({ length: tokens }, (_, t) => ends.findIndex((end) => t < end));
  return {
    q: randomNormal(tokens * heads * headDim, 1),
    k: randomNormal(tokens * kvHeads * headDim, 2),
    v: randomNormal(tokens * kvHeads * headDim, 3),
    dO: randomNormal(tokens * heads * headDim, 4),
    start: segment.map((s) => ends[s]! - lengths[s]!),
    end: segment.map((s) => ends[s]!),
  };
}
