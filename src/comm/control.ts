/**
 * The control connection: small messages between a rank's communicator and the root, each one line of JSON, after a
 * handshake on the run's token. Lines are bounded; one that is too long, or is no JSON, closes the connection. The root
 * answers each with the time for which it may be silent: a rank that says something and hears nothing has a root that hangs.
 */
import { acceptHandshake, type ByteConnection, closeQuietly, offerHandshake } from "./handshake.ts";
import { knock } from "./knock.ts";
import { Strangers } from "./strangers.ts";

const longestLine = 64 << 10;

/** Lines of a connection as values, until it closes. @throws {SyntaxError | RangeError} on a line that is not one. */
async function* values(connection: ByteConnection): AsyncGenerator<unknown> {
  const decoder = new TextDecoder(), chunk = new Uint8Array(4096);
  let text = "";
  for (;;) {
    const count = await connection.read(chunk);
    if (count === null) return;
    text += decoder.decode(chunk.subarray(0, count), { stream: true });
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
      yield JSON.parse(text.slice(0, end));
      text = text.slice(end + 1);
    }
    if (text.length > longestLine) throw new RangeError(`A control message is longer than ${longestLine} characters`);
  }
}

export interface ControlListener extends AsyncDisposable {
  readonly port: number;
}

/** So long the root may leave a rank without an answer. */
const mostSilentMs = 10_000;

/**
 * Listens for communicators. Strangers are refused by the handshake and cost nothing but it.
 *
 * @param silentMs what ranks are told of how long to wait for an answer; ten seconds at most
 * @param onValue what each authenticated connection says, in order; false closes it
 * @throws {Deno.errors.AddrInUse} saying what to type, when the port is taken
 */
export function listenControl(
  { hostname, port, token, silentMs = mostSilentMs, onValue, onRefused }: {
    hostname: string;
    /** 0 takes a free one. */
    port: number;
    token: string;
    silentMs?: number;
    onValue: (value: unknown) => unknown;
    onRefused?: (reason: string) => void;
  },
): ControlListener {
  const listener = listen(hostname, port);
  const open = new Set<Deno.TcpConn>(), work = new Set<Promise<void>>(), strangers = new Strangers();
  const answer = encodeLine(Math.min(silentMs, mostSilentMs));
  const serve = async (connection: Deno.TcpConn) => {
    let answering: Promise<void> | undefined;
    open.add(connection);
    try {
      await acceptHandshake(connection, { token, onProven: () => strangers.delete(connection) });
    } catch (error) {
      open.delete(connection);
      onRefused?.((error as Error).message);
      return;
    } finally {
      strangers.delete(connection);
    }
    try {
      for await (const value of values(connection)) {
        if (onValue(value) === false) break;
        // Whoever does not read is owed one answer, not many.
        answering ??= writeAll(connection, answer).catch(() => {}).finally(() => answering = undefined);
      }
    } catch (error) {
      onRefused?.((error as Error).message);
    } finally {
      if (open.delete(connection)) connection.close();
    }
  };
  const accepting = (async () => {
    for await (const connection of listener) {
      if (!await strangers.admit(connection)) continue;
      const served = serve(connection).finally(() => work.delete(served));
      work.add(served);
    }
  })();
  return {
    port: listener.addr.port,
    async [Symbol.asyncDispose]() {
      listener.close();
      strangers.close();
      for (const connection of open) closeQuietly(connection);
      open.clear();
      await Promise.all([accepting, ...work]);
    },
  };
}

function listen(hostname: string, port: number): Deno.TcpListener {
  try {
    return Deno.listen({ hostname, port, tcpBacklog: 4096 });
  } catch (error) {
    if (error instanceof Deno.errors.AddrInUse) {
      throw new Deno.errors.AddrInUse(
        `Cannot listen on ${hostname}:${port}: the port is in use; --port with another number, or none, would work`,
        { cause: error },
      );
    }
    if (error instanceof Deno.errors.NotCapable) throw error;
    const reason = (error as Error).message.replace(/ \(os error \d+\).*/s, "");
    throw new Error(`Cannot listen on ${hostname}: ${reason}; --host with an address of this host would work`, {
      cause: error,
    });
  }
}

const encodeLine = (value: unknown) => new TextEncoder().encode(JSON.stringify(value) + "\n");

async function writeAll(connection: Deno.TcpConn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}

export interface ControlConnection extends Disposable {
  send(value: unknown): Promise<void>;
  /** Grows with the root's answers: one at least to whatever was sent before it is waited for. */
  readonly answers: number;
  /** So long the root may leave what was sent without an answer, by its own words. */
  readonly silentMs: number;
  /** Resolves when the other end is gone, or this one has disposed of the connection. */
  readonly closed: Promise<void>;
}

/** Joins the root, knocking again where it is turned away in a crowd. @throws {HandshakeError} when the token is not the root's. */
export async function joinControl(
  { hostname, port, token, timeoutMs = 60_000 }: { hostname: string; port: number; token: string; timeoutMs?: number },
): Promise<ControlConnection> {
  const connection = await knock(timeoutMs, async (leftMs) => {
    const connection = await Deno.connect({ hostname, port, signal: AbortSignal.timeout(leftMs) });
    connection.setNoDelay(true);
    await offerHandshake(connection, { token, timeoutMs: leftMs });
    return connection;
  });
  let answers = 0, silentMs = mostSilentMs;
  return {
    send: (value) => writeAll(connection, encodeLine(value)),
    get answers() {
      return answers;
    },
    get silentMs() {
      return silentMs;
    },
    closed: (async () => {
      try {
        for await (const value of values(connection)) {
          answers++;
          if (typeof value === "number" && value > 0) silentMs = value;
        }
      } catch {
        // closed from this side, or broken: either way it is over
      }
    })(),
    [Symbol.dispose]: () => closeQuietly(connection),
  };
}
