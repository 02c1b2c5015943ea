/**
 * Gates: where connections are let in that know the run's token, and what is said on them before there are collectives. A
 * stranger gets nothing but a closed socket, and costs no more than one of a bounded number of handshakes.
 */
import type { z } from "zod";
import { acceptHandshake, closeQuietly, offerHandshake } from "../handshake.ts";
import { knock } from "../knock.ts";
import { afterPatience } from "../patience.ts";
import { Strangers } from "../strangers.ts";
import { encryptedFrames } from "./encryption.ts";
import { type FrameKind, maxBodyBytes, noTag } from "./frame.ts";
import { type FrameStream, plainFrames } from "./frame_stream.ts";
import { CommunicationError } from "./link.ts";

/** A port on a host. */
export interface Address {
  readonly hostname: string;
  readonly port: number;
}

export async function say(stream: FrameStream, value: unknown): Promise<void> {
  const body = new TextEncoder().encode(JSON.stringify(value));
  if (body.length > maxBodyBytes) throw new RangeError(`Cannot say ${body.length} bytes: ${maxBodyBytes} are allowed`);
  const kind: FrameKind = "control";
  await stream.write({ kind, tag: noTag, bodyBytes: body.length, messageBytes: body.length }, body);
}

export async function hear<T>(stream: FrameStream, schema: z.ZodType<T>): Promise<T | null> {
  const frame = await stream.read();
  if (frame === null) return null;
  const body = new Uint8Array(frame.bodyBytes);
  await stream.readBody(body);
  return schema.parse(JSON.parse(new TextDecoder().decode(body)));
}

/** Lets at most `timeoutMs` pass, then closes what is waited for. */
export async function within<T>(timeoutMs: number, close: () => void, work: () => Promise<T>): Promise<T> {
  using _ = afterPatience(timeoutMs, close);
  return await work();
}

export const handshakeMs = 5000;

function listen(hostname: string, port: number): Deno.TcpListener {
  try {
    return Deno.listen({ hostname, port, tcpBacklog: 4096 });
  } catch (cause) {
    const { message } = cause as Error;
    throw new CommunicationError(
      `Cannot listen on ${hostname}:${port}: ${message}; an address of this host, and port 0 or a free one, would work`,
      { cause },
    );
  }
}

export interface Gate {
  readonly address: Deno.NetAddr;
  /** Stops listening; connections that are through stay. */
  close(): Promise<void>;
}

interface GateOptions {
  readonly token: string;
  readonly encrypt: boolean;
  /** An authenticated connection; it belongs to the callee. */
  readonly onStream: (stream: FrameStream) => void;
  /** Told why, and from which address they came. */
  readonly onRefused?: ((reason: string, from: string) => void) | undefined;
}

/** Listens, and lets in who knows the token. */
export function openGate({ hostname, port = 0, ...options }: GateOptions & { hostname: string; port?: number }): Gate {
  const listener = listen(hostname, port);
  return { address: listener.addr, close: keep(listener, options) };
}

/** The same on a Unix socket, for processes of this host. @throws where there can be none at that path */
export function openLocalGate({ path, ...options }: GateOptions & { path: string }): Pick<Gate, "close"> {
  return { close: keep(Deno.listen({ transport: "unix", path }), options) };
}

/** @returns closes it */
function keep(
  listener: Deno.TcpListener | Deno.UnixListener,
  { token, encrypt, onStream, onRefused }: GateOptions,
): () => Promise<void> {
  const strangers = new Strangers(), work = new Set<Promise<void>>();
  const admit = async (connection: Deno.TcpConn | Deno.UnixConn) => {
    try {
      if ("setNoDelay" in connection) connection.setNoDelay(true);
      // From there on it is no stranger, and nobody shows it out.
      await acceptHandshake(connection, {
        token,
        encrypt,
        timeoutMs: handshakeMs,
        onProven: () => strangers.delete(connection),
      });
      const stream = encrypt
        ? await encryptedFrames(connection, { token, role: "server", timeoutMs: handshakeMs })
        : plainFrames(connection);
      onStream(stream);
    } catch (error) {
      closeQuietly(connection);
      const { remoteAddr } = connection;
      onRefused?.((error as Error).message, remoteAddr.transport === "tcp" ? remoteAddr.hostname : "this host");
    } finally {
      strangers.delete(connection);
    }
  };
  const accepting = (async () => {
    for await (const connection of listener as AsyncIterable<Deno.TcpConn | Deno.UnixConn>) {
      if (!await strangers.admit(connection)) continue;
      const admitted = admit(connection).finally(() => work.delete(admitted));
      work.add(admitted);
    }
  })();
  return async () => {
    listener.close();
    strangers.close();
    await Promise.all([accepting, ...work]);
  };
}

interface DialOptions {
  readonly token: string;
  readonly encrypt: boolean;
  /** For all attempts together. */
  readonly timeoutMs: number;
}

/**
 * Connects to a gate, and knocks again where it is turned away in a crowd.
 *
 * @throws {HandshakeError} at once, where the token is not the same
 * @throws {TurnedAwayError} where nobody has listened within `timeoutMs`
 * @throws {CommunicationError} where the address cannot be reached
 */
export async function dial(
  { hostname, port, onConnected, ...options }: Address & DialOptions & {
    /** Told this end's own address. */
    onConnected?: (hostname: string) => void;
  },
): Promise<FrameStream> {
  return await call(`${hostname}:${port}`, options, async (signal) => {
    const connection = await Deno.connect({ hostname, port, signal });
    connection.setNoDelay(true);
    onConnected?.((connection.localAddr as Deno.NetAddr).hostname);
    return connection;
  });
}

/** The same to a gate of this host. */
export async function dialLocal({ path, ...options }: { path: string } & DialOptions): Promise<FrameStream> {
  return await call(path, options, () => Deno.connect({ transport: "unix", path }));
}

async function call(
  at: string,
  { token, encrypt, timeoutMs }: DialOptions,
  connect: (signal: AbortSignal) => Promise<Deno.TcpConn | Deno.UnixConn>,
): Promise<FrameStream> {
  return await knock(timeoutMs, async (leftMs) => {
    const connection = await connect(AbortSignal.timeout(leftMs)).catch((cause) => {
      throw new CommunicationError(`Cannot reach ${at}: ${(cause as Error).message}`, { cause });
    });
    // To wait in line costs nothing; whoever left it would be the last again.
    await offerHandshake(connection, { token, encrypt, timeoutMs: leftMs });
    return encrypt
      ? await encryptedFrames(connection, { token, role: "client", timeoutMs: leftMs })
      : plainFrames(connection);
  });
}
