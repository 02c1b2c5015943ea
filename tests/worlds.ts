/** Whole worlds of ranks in one thread, for tests of what they do together. */
import { createCommunicator } from "../src/comm/collectives/communicator.ts";
import { simulatedWorld } from "../src/comm/transport/simulated.ts";
import type { Transport } from "../src/comm/transport/transport.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import { runMesh } from "../src/parallel/run_mesh.ts";
import { createWorld, type World } from "../src/parallel/world.ts";

/**
 * Runs `work` on all ranks of a world at once, each with its own place in it.
 *
 * @param join how they are joined. @default over memory
 */
export async function together<T>(
  world: number,
  work: (worldOf: (config: ResolvedConfig) => World, rank: number, transport: Transport) => Promise<T>,
  join: (world: number) => readonly Transport[] | Promise<readonly Transport[]> = simulatedWorld,
): Promise<T[]> {
  const transports = await join(world);
  try {
    return await Promise.all(transports.map((transport, rank) => {
      const communicator = createCommunicator(transport);
      return work((config) => createWorld(runMesh(config, { rank, world }), communicator), rank, transport)
        .catch((error) => {
          transport.abort(`rank ${rank}: ${error.message}`);
          throw error;
        });
    }));
  } finally {
    await Promise.all(transports.map((transport) => transport.close()));
  }
}
