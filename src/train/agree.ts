/** What all ranks come to know together, in one small exchange: sums of losses, squared norms, counts. */
import type { World } from "../parallel/world.ts";

/**
 * Sums over all ranks of the world, value by value, in double and in the order of ranks: everyone gets the same bits, and
 * a value that is not finite anywhere is so everywhere.
 */
export async function agree(world: World, values: readonly number[]): Promise<number[]> {
  if (world.mesh.world === 1) return [...values];
  const group = world.group("global"), { ranks, index } = group;
  const all = new Float64Array(values.length * ranks.length);
  all.set(values, index * values.length);
  await group.allGather(new Uint8Array(all.buffer));
  return values.map((_, i) => {
    let sum = 0;
    for (let rank = 0; rank < ranks.length; rank++) sum += all[rank * values.length + i]!;
    return sum;
  });
}
