/**
 * Mutual proof that both ends of a connection know the run's token, before anything else is said: an HMAC-SHA-256
 * challenge each way, over fresh nonces of both. A stranger learns nothing and gets a closed connection.
 *
 * ```text
 * server → client   nonceS (32 bytes)
 * client → server   nonceC (32 bytes), HMAC(token, "client" nonceS nonceC)
 * server → client   HMAC(token, "server" nonceS nonceC)
 * ```
 */

const nonceBytes = 32, proofBytes = 32;

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

async function proof(token: string, role: "client" | "server", nonces: readonly Uint8Array[]) {
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
    if (count === null) {
      throw new HandshakeError("Cannot join: the other end closed the connection; is the token the same?");
    }
    filled += count;
  }
  return bytes;
}

async function writeAll(connection: ByteConnection, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}

/** Closes the connection when the work fails or takes longer than `timeoutMs`. */
async function guarded(connection: ByteConnection, timeoutMs: number, work: () => Promise<void>): Promise<void> {
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    connection.close();
  }, timeoutMs);
  try {
    await work();
  } catch (error) {
    if (late) {
      throw new HandshakeError(`Cannot join: no proof of the token came within ${timeoutMs} ms`, { cause: error });
    }
    connection.close();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}

interface HandshakeOptions {
  readonly token: string;
  /** @default {5000} */
  readonly timeoutMs?: number;
}

/** The accepting end. On failure the connection is closed. */
export function acceptHandshake(
  connection: ByteConnection,
  { token, timeoutMs = 5000 }: HandshakeOptions,
): Promise<void> {
  return guarded(connection, timeoutMs, async () => {
    const nonceS = crypto.getRandomValues(new Uint8Array(nonceBytes));
    await writeAll(connection, nonceS);
    const answer = await readExactly(connection, nonceBytes + proofBytes);
    const nonceC = answer.subarray(0, nonceBytes);
    if (!equal(answer.subarray(nonceBytes), await proof(token, "client", [nonceS, nonceC]))) {
      throw new HandshakeError("Cannot accept a connection: it does not know the run's token");
    }
    await writeAll(connection, await proof(token, "server", [nonceS, nonceC]));
  });
}

/** The connecting end. On failure the connection is closed. */
export function offerHandshake(
  connection: ByteConnection,
  { token, timeoutMs = 5000 }: HandshakeOptions,
): Promise<void> {
  return guarded(connection, timeoutMs, async () => {
    const nonceS = await readExactly(connection, nonceBytes);
    const nonceC = crypto.getRandomValues(new Uint8Array(nonceBytes));
    const own = await proof(token, "client", [nonceS, nonceC]);
    await writeAll(connection, new Uint8Array([...nonceC, ...own]));
    if (!equal(await readExactly(connection, proofBytes), await proof(token, "server", [nonceS, nonceC]))) {
      throw new HandshakeError("Cannot join: the other end does not know the run's token");
    }
  });
}
