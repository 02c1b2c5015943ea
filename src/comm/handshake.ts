/**
 * Mutual proof that both ends of a connection know the run's token, before anything else is said: an HMAC-SHA-256
 * challenge each way, over fresh nonces of both. A stranger learns nothing and gets a closed connection.
 *
 * ```text
 * server → client   nonceS (32 bytes)
 * client → server   nonceC (32 bytes), HMAC(token, "client" nonceS nonceC)
 * server → client   HMAC(token, "server" nonceS nonceC), or a denial of as many bytes
 * ```
 *
 * Where frames are to be encrypted, both say "encrypted client" and so on. A denial tells a client that has mistyped its
 * token, or encrypts where the other end does not, from one that was shown out unheard because too many came at once: the
 * first never gets in, the other does if it knocks again.
 */
import { afterPatience } from "./patience.ts";

const nonceBytes = 32, proofBytes = 32;
/** In place of a proof: yours is not right; or it is, and one end encrypts. */
const denial = new Uint8Array(proofBytes), otherMode = new Uint8Array(proofBytes).fill(1);

/** What the handshake needs of a connection; a `Deno.TcpConn` is one. */
export interface ByteConnection {
  read(into: Uint8Array): Promise<number | null>;
  write(bytes: Uint8Array): Promise<number>;
  close(): void;
}

export const closeQuietly = (connection: { close(): void }) => {
  try {
    connection.close();
  } catch {
    // closed already
  }
};

/** Thrown when the other end does not prove that it knows the token, or says nothing in time. */
export class HandshakeError extends Error {
  override readonly name = "HandshakeError";
}

/** Thrown where the other end closed the connection or did not answer before anything was decided: to knock again may help. */
export class TurnedAwayError extends Error {
  override readonly name = "TurnedAwayError";
}

async function proof(token: string, role: string, nonces: readonly Uint8Array[]) {
  const encoder = new TextEncoder();
  const key = await crypto.subtle.importKey("raw", encoder.encode(token), { name: "HMAC", hash: "SHA-256" }, false, [
    "sign",
  ]);
  const parts = [encoder.encode(role), ...nonces];
  const text = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    text.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.sign("HMAC", key, text));
}

const roles = (encrypt: boolean) => (
  encrypt ? { client: "encrypted client", server: "encrypted server" } : { client: "client", server: "server" }
);

/** Compares in a time that tells nothing of where they differ. */
function equal(a: Uint8Array, b: Uint8Array): boolean {
  let difference = a.length ^ b.length;
  for (let i = 0; i < Math.min(a.length, b.length); i++) difference |= a[i]! ^ b[i]!;
  return difference === 0;
}

async function readExactly(connection: ByteConnection, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const count = await connection.read(bytes.subarray(filled));
    if (count === null) throw new TurnedAwayError("the other end closed the connection in the middle of the handshake");
    filled += count;
  }
  return bytes;
}

async function writeAll(connection: ByteConnection, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}

/** Closes the connection when the work fails or takes longer than `timeoutMs`. @param late why, then */
async function guarded(
  connection: ByteConnection,
  timeoutMs: number,
  late: (cause: unknown) => Error,
  work: () => Promise<void>,
): Promise<void> {
  let over = false;
  using _ = afterPatience(timeoutMs, () => {
    over = true;
    closeQuietly(connection);
  });
  try {
    await work();
  } catch (error) {
    if (over) throw late(error);
    closeQuietly(connection);
    throw error;
  }
}

interface HandshakeOptions {
  readonly token: string;
  /** Whether what follows is encrypted, as both ends must mean it. @default {false} */
  readonly encrypt?: boolean;
  /** @default {5000} */
  readonly timeoutMs?: number;
}

/**
 * The accepting end. On failure the connection is closed.
 *
 * @param onProven called when the other end has proved that it knows the token, before it is told that it is let in
 */
export function acceptHandshake(
  connection: ByteConnection,
  { token, encrypt = false, timeoutMs = 5000, onProven }: HandshakeOptions & { readonly onProven?: () => void },
): Promise<void> {
  const late = (cause: unknown) =>
    new HandshakeError(
      `Cannot accept a connection: no proof of the token came within ${Math.round(timeoutMs)} ms`,
      { cause },
    );
  return guarded(connection, timeoutMs, late, async () => {
    const nonceS = crypto.getRandomValues(new Uint8Array(nonceBytes));
    await writeAll(connection, nonceS);
    const answer = await readExactly(connection, nonceBytes + proofBytes);
    const nonceC = answer.subarray(0, nonceBytes);
    const proves = async (encrypt: boolean) =>
      equal(answer.subarray(nonceBytes), await proof(token, roles(encrypt).client, [nonceS, nonceC]));
    if (!await proves(encrypt)) {
      const knows = await proves(!encrypt);
      await writeAll(connection, knows ? otherMode : denial).catch(() => {}); // it may be gone
      const why = knows ? `runtime.encrypt is ${!encrypt} there, ${encrypt} here` : "it does not know the run's token";
      throw new HandshakeError(`Cannot accept a connection: ${why}`);
    }
    const own = await proof(token, roles(encrypt).server, [nonceS, nonceC]);
    onProven?.();
    await writeAll(connection, own);
  });
}

/**
 * The connecting end. On failure the connection is closed.
 *
 * @throws {HandshakeError} when the two ends do not know the same token, which they never will
 * @throws {TurnedAwayError} when the other end closed the connection or took longer than `timeoutMs`
 */
export function offerHandshake(
  connection: ByteConnection,
  { token, encrypt = false, timeoutMs = 5000 }: HandshakeOptions,
): Promise<void> {
  const late = (cause: unknown) => new TurnedAwayError(`no answer to the handshake within ${timeoutMs} ms`, { cause });
  return guarded(connection, timeoutMs, late, async () => {
    try {
      const nonceS = await readExactly(connection, nonceBytes);
      const nonceC = crypto.getRandomValues(new Uint8Array(nonceBytes));
      const own = await proof(token, roles(encrypt).client, [nonceS, nonceC]);
      await writeAll(connection, new Uint8Array([...nonceC, ...own]));
      const theirs = await readExactly(connection, proofBytes);
      if (equal(theirs, denial)) throw new HandshakeError("Cannot join: the other end refuses; is the token the same?");
      if (equal(theirs, otherMode)) {
        throw new HandshakeError(`Cannot join: runtime.encrypt is ${encrypt} here, ${!encrypt} at the other end`);
      }
      if (!equal(theirs, await proof(token, roles(encrypt).server, [nonceS, nonceC]))) {
        throw new HandshakeError("Cannot join: the other end does not know the run's token");
      }
    } catch (error) {
      if (error instanceof HandshakeError || error instanceof TurnedAwayError) throw error;
      throw new TurnedAwayError(`the connection broke in the middle of the handshake: ${(error as Error).message}`, {
        cause: error,
      });
    }
  });
}
