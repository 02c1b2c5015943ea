/**
 * How ranks find each other: each listens on a port of its own, tells the root where, gets the table of all addresses,
 * and connects to its peers, one connection a pair, the higher rank to the lower. Every connection begins with the
 * handshake on the run's token.
 */
import { z } from "zod";
import type { FrameStream } from "./frame_stream.ts";
import { closeQuietly, HandshakeError } from "../handshake.ts";
import { dial, dialLocal, handshakeMs, hear, openGate, openLocalGate, say, within } from "./gate.ts";
import { CommunicationError } from "./link.ts";
import { openAt, sameHost } from "./local_sockets.ts";
import { createTransport, type Transport } from "./transport.ts";

const addressSchema = z.object({
  hostname: z.string(),
  port: z.number().int().min(1).max(65535),
  /** The path of its Unix socket, for ranks of its host. */
  socket: z.string().max(255).optional(),
  /** Its GPU, as far as ranks of its host can tell: those that say the same use the same. */
  device: z.string().max(10_000).optional(),
});
export type Address = z.output<typeof addressSchema>;

const registerSchema = z.object({
  rank: z.number().int().min(0),
  world: z.number().int().min(1),
  /** Must be the same on all ranks: of the run record, of the program. */
  fingerprint: z.string(),
  address: addressSchema,
});
const tableSchema = z.union([
  z.object({ refused: z.string() }),
  z.object({ addresses: z.array(addressSchema) }),
]);
const helloSchema = z.object({ rank: z.number().int().min(0) });

export interface Rendezvous {
  readonly port: number;
  /** Resolves when every rank has the table; fails when they do not come in time, naming who is missing. */
  readonly complete: Promise<void>;
  close(): Promise<void>;
}

export interface MeetingOptions {
  readonly token: string;
  readonly world: number;
  /** Must be the same on all ranks. */
  readonly fingerprint?: string;
  /** Encrypts every frame. @default {false} */
  readonly encrypt?: boolean;
  /** How long to wait for all. @default {60_000} */
  readonly timeoutMs?: number;
  /** Told of every connection that is refused. */
  readonly onRefused?: (reason: string) => void;
}

/** The root's part: takes the ranks' addresses, and gives each the table when all are there. */
export function openRendezvous(
  { hostname, port = 0, ...options }: MeetingOptions & { hostname: string; port?: number },
): Rendezvous {
  const { token, world, fingerprint = "", encrypt = false, timeoutMs = 60_000, onRefused } = options;
  const registered = new Map<number, { stream: FrameStream; address: Address }>(), open = new Set<FrameStream>();
  const { promise: complete, resolve, reject } = Promise.withResolvers<void>();
  complete.catch(() => {});
  const refusal = ({ rank, world: theirs, fingerprint: print }: z.output<typeof registerSchema>) => {
    if (theirs !== world) return `rank ${rank} is of a world of ${theirs} ranks, this one has ${world}`;
    if (rank >= world) return `rank ${rank} is not one of 0 to ${world - 1}`;
    if (registered.has(rank)) return `there is a rank ${rank} already`;
    if (print !== fingerprint) return `rank ${rank} has another configuration or version: ${print}, not ${fingerprint}`;
  };
  const register = async (stream: FrameStream) => {
    open.add(stream);
    try {
      const said = await within(handshakeMs, () => closeQuietly(stream), () => hear(stream, registerSchema));
      if (said === null) return;
      const refused = refusal(said);
      if (refused !== undefined) {
        await say(stream, { refused });
        throw new CommunicationError(`Refused a rank: ${refused}`);
      }
      registered.set(said.rank, { stream, address: said.address });
      if (registered.size < world) return;
      const addresses = Array.from({ length: world }, (_, rank) => registered.get(rank)!.address);
      await Promise.all([...registered.values()].map((each) => say(each.stream, { addresses })));
      resolve();
    } catch (error) {
      open.delete(stream);
      closeQuietly(stream);
      onRefused?.((error as Error).message);
    }
  };
  const gate = openGate({
    hostname,
    port,
    token,
    encrypt,
    onRefused,
    onStream: (stream) => void register(stream),
  });
  const timer = setTimeout(() => {
    const missing = Array.from({ length: world }, (_, rank) => rank).filter((rank) => !registered.has(rank));
    reject(new CommunicationError(`Ranks ${missing.join(", ")} of ${world} did not come within ${timeoutMs} ms`));
  }, timeoutMs);
  complete.then(() => clearTimeout(timer), () => {});
  return {
    port: gate.address.port,
    complete,
    async close() {
      clearTimeout(timer);
      reject(new CommunicationError("The meeting was closed before all ranks came"));
      await gate.close();
      for (const stream of open) closeQuietly(stream);
      open.clear();
    },
  };
}

/**
 * A rank's part: from the root's address to a transport.
 *
 * @param peers ranks to connect to; each must name this one too. All others if left out
 * @throws {CommunicationError} when the root refuses, or someone does not come in time, naming who
 */
export async function joinWorld(
  { rank, root, hostname, socket, device, peers, ...options }: MeetingOptions & {
    rank: number;
    root: Address;
    /** This rank's own, as its peers reach it. */
    hostname: string;
    /** A path for its Unix socket, by which those peers reach it that have theirs in the same folder. */
    socket?: string | undefined;
    /** What chooses its GPU: ranks with sockets in one folder that say the same use the same GPU. */
    device?: string | undefined;
    peers?: readonly number[];
  },
): Promise<Transport> {
  const { token, world, fingerprint = "", encrypt = false, timeoutMs = 60_000, onRefused } = options;
  const wanted = new Set((peers ?? Array.from({ length: world }, (_, i) => i)).filter((peer) => peer !== rank));
  const streams = new Map<number, FrameStream>(), unnamed = new Set<FrameStream>();
  const { promise: all, resolve: allThere } = Promise.withResolvers<void>();
  const admitted = (peer: number, stream: FrameStream) => {
    streams.set(peer, stream);
    if (streams.size === wanted.size) allThere();
  };
  if (wanted.size === 0) allThere();
  const admission = {
    token,
    encrypt,
    onRefused,
    onStream: async (stream: FrameStream) => {
      unnamed.add(stream);
      try {
        const said = await within(handshakeMs, () => closeQuietly(stream), () => hear(stream, helloSchema));
        const peer = said?.rank;
        if (peer === undefined || peer <= rank || !wanted.has(peer) || streams.has(peer)) {
          throw new CommunicationError(`Refused a connection: rank ${peer} is not awaited by rank ${rank}`);
        }
        admitted(peer, stream);
      } catch (error) {
        closeQuietly(stream);
        onRefused?.((error as Error).message);
      } finally {
        unnamed.delete(stream);
      }
    },
  };
  const gate = openGate({ hostname, ...admission });
  const localGate = socket === undefined ? undefined : openAt(socket, (path) => openLocalGate({ path, ...admission }));
  const own = { hostname, port: gate.address.port, ...(localGate ? { socket, device } : {}) };
  /** By the shortest way. */
  const reach = async ({ socket, ...address }: Address): Promise<FrameStream> => {
    const dialling = { token, encrypt, timeoutMs: left() };
    const local = sameHost(socket, own.socket) ? dialLocal({ path: socket!, ...dialling }) : undefined;
    return await local?.catch((error) => {
      if (error instanceof HandshakeError) throw error;
    }) ?? await dial({ ...address, ...dialling });
  };
  const deadline = performance.now() + timeoutMs, left = () => Math.max(1, deadline - performance.now());
  let atRoot: FrameStream | undefined, sharing: number[] = [];
  try {
    atRoot = await dial({ ...root, token, encrypt, timeoutMs: left() });
    await say(atRoot, { rank, world, fingerprint, address: own });
    const table = await within(left(), () => closeQuietly(atRoot!), () => hear(atRoot!, tableSchema)).catch((cause) => {
      throw new CommunicationError(`Rank ${rank} got no table within ${timeoutMs} ms`, { cause });
    });
    if (table === null) throw new CommunicationError("The root closed the connection before all ranks had come");
    if ("refused" in table) throw new CommunicationError(`The root refuses rank ${rank}: ${table.refused}`);
    if (own.device !== undefined) {
      sharing = [...table.addresses.keys()].filter((peer) => {
        const { socket, device } = table.addresses[peer]!;
        return device === own.device && sameHost(socket, own.socket);
      });
    }
    await Promise.all(
      [...wanted].filter((peer) => peer < rank).map(async (peer) => {
        const address = table.addresses[peer];
        if (!address) throw new RangeError(`Rank ${peer} is not one of 0 to ${world - 1}`);
        const stream = await reach(address);
        await say(stream, { rank });
        admitted(peer, stream);
      }),
    );
    const late = Promise.withResolvers<never>();
    await within(left(), () => {
      const missing = [...wanted].filter((peer) => !streams.has(peer));
      late.reject(new CommunicationError(`Ranks ${missing.join(", ")} did not connect to rank ${rank} in time`));
    }, () => Promise.race([all, late.promise]));
  } catch (error) {
    for (const stream of streams.values()) closeQuietly(stream);
    if (error instanceof HandshakeError || error instanceof CommunicationError) throw error;
    throw new CommunicationError(`Rank ${rank} cannot join: ${(error as Error).message}`, { cause: error });
  } finally {
    if (atRoot) closeQuietly(atRoot);
    await Promise.all([gate.close(), localGate?.close()]);
    for (const stream of unnamed) closeQuietly(stream);
  }
  return createTransport({ rank, world, streams, sharing });
}
