/** Worlds for tests: ranks in this process, joined over loopback or over memory. */
import { type Communicator, type CommunicatorOptions, createCommunicator } from "./collectives/communicator.ts";
import { joinWorld, type MeetingOptions, openRendezvous } from "./transport/rendezvous.ts";
import { simulatedWorld } from "./transport/simulated.ts";
import type { Transport } from "./transport/transport.ts";

export const hostname = "127.0.0.1";

/** Ranks that meet over TCP on this host. */
export async function tcpWorld(world: number, options: Partial<MeetingOptions> = {}): Promise<Transport[]> {
  const shared = { token: "secret", world, ...options };
  const meeting = openRendezvous({ hostname, ...shared });
  const root = { hostname, port: meeting.port };
  const transports = await Promise.all(
    Array.from({ length: world }, (_, rank) => joinWorld({ rank, root, hostname, ...shared })),
  );
  await meeting.complete;
  await meeting.close();
  return transports;
}

/** Runs `work` on every rank of a world at once, then closes it. */
export async function onAllRanks<T>(
  transports: readonly Transport[],
  work: (communicator: Communicator, rank: number) => Promise<T>,
  options: CommunicatorOptions = {},
): Promise<T[]> {
  try {
    return await Promise.all(
      transports.map((transport) => work(createCommunicator(transport, options), transport.rank)),
    );
  } finally {
    await Promise.all(transports.map((transport) => transport.close()));
  }
}

export { simulatedWorld };
