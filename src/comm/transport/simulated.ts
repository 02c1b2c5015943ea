/** Worlds in one process, for tests and simulations: the same links, over memory. */
import { framePair, type FrameStream } from "./frame_stream.ts";
import { createTransport, type Transport } from "./transport.ts";

/** Transports of all ranks of a world, joined each to each. */
export function simulatedWorld(world: number): Transport[] {
  const streams = Array.from({ length: world }, () => new Map<number, FrameStream>());
  for (let a = 0; a < world; a++) {
    for (let b = a + 1; b < world; b++) {
      const [atA, atB] = framePair();
      streams[a]!.set(b, atA);
      streams[b]!.set(a, atB);
    }
  }
  return streams.map((own, rank) => createTransport({ rank, world, streams: own }));
}
