/** The mesh that a run record describes, from the place of one rank. */
import type { ResolvedConfig } from "../config/mod.ts";
import { parallelSizes } from "../config/parallel_sizes.ts";
import { createMesh, type Mesh } from "./mesh.ts";

/** @throws {RangeError} when the parallel sizes do not fit the number of ranks */
export function runMesh(config: ResolvedConfig, { rank, world }: { rank: number; world: number }): Mesh {
  const { parallel: { zero1, sequence_2D: grid }, model } = config, sizes = parallelSizes(config, world);
  // Ranks that divide the weights have the state of their parts, and nothing more to divide.
  const wp = sizes.zero1, wdp = (wp > 1 ? sizes.dp : sizes.wdp) / wp;
  return createMesh({
    sizes: zero1.fsdp ? { ...sizes, wp, wdp, zero1: 1 } : sizes,
    rank,
    tensorMode: config.parallel.tensor.mode,
    numExperts: model.num_experts,
    fsdp: zero1.fsdp,
    ...(grid.enable
      ? {
        sequence2D: {
          headSize: grid.head_size,
          contextSize: grid.context_size,
          headFirst: grid.device_placement_strategy.head_first,
        },
      }
      : {}),
  });
}
