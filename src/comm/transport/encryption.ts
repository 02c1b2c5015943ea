/**
 * Encrypted frames, for runs that cross networks others can read: AES-256-GCM under two keys (one each way) derived by
 * HKDF-SHA-256 from an X25519 exchange and the run's token. Who changes a public key on its way cannot derive the keys
 * without the token, so the first frame fails. The nonce is a counter: a frame that is dropped, repeated or moved fails.
 *
 * ```text
 * each way      public key (32 bytes)
 * each frame    u32 bytes of what follows, AES-256-GCM(header, body) with its tag of 16 bytes
 * ```
 */
import { type ByteConnection, HandshakeError, TurnedAwayError } from "../handshake.ts";
import { decodeFrame, encodeFrame, headerBytes, maxBodyBytes } from "./frame.ts";
import { BufferedReader, type FrameStream, writeAll } from "./frame_stream.ts";

const publicKeyBytes = 32, tagBytes = 16, longest = headerBytes + maxBodyBytes + tagBytes;

const concat = (...parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> => {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
};

/**
 * Exchanges keys over a connection that has passed the handshake; to be called by both ends.
 *
 * @param role which end this is: the two keys are told apart by it
 * @throws {TurnedAwayError} when the other end goes away; the connection is closed
 * @throws {HandshakeError} when it takes longer than `timeoutMs`; the connection is closed
 */
export async function encryptedFrames(
  connection: ByteConnection,
  { token, role, timeoutMs = 5000 }: { token: string; role: "client" | "server"; timeoutMs?: number },
): Promise<FrameStream> {
  const reader = new BufferedReader(connection);
  const timer = setTimeout(() => connection.close(), timeoutMs);
  let sealKey: CryptoKey, openKey: CryptoKey;
  try {
    const pair = await crypto.subtle.generateKey({ name: "X25519" }, false, ["deriveBits"]) as CryptoKeyPair;
    const own = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
    const theirs = new Uint8Array(publicKeyBytes);
    await writeAll(connection, own);
    if (!await reader.fill(theirs)) {
      throw new TurnedAwayError("the other end closed the connection before it gave a key");
    }
    const publicKey = await crypto.subtle.importKey("raw", theirs, { name: "X25519" }, false, []);
    const secret = await crypto.subtle.deriveBits({ name: "X25519", public: publicKey }, pair.privateKey, 256);
    const material = concat(new Uint8Array(secret), new TextEncoder().encode(token));
    const base = await crypto.subtle.importKey("raw", material, "HKDF", false, ["deriveKey"]);
    const [client, server] = role === "client" ? [own, theirs] : [theirs, own];
    const key = (direction: string, usage: KeyUsage) =>
      crypto.subtle.deriveKey(
        { name: "HKDF", hash: "SHA-256", salt: concat(client, server), info: new TextEncoder().encode(direction) },
        base,
        { name: "AES-GCM", length: 256 },
        false,
        [usage],
      );
    const toServer = "troupe frames, client to server", toClient = "troupe frames, server to client";
    sealKey = await key(role === "client" ? toServer : toClient, "encrypt");
    openKey = await key(role === "client" ? toClient : toServer, "decrypt");
  } catch (error) {
    try {
      connection.close();
    } catch {
      // already closed: it was late
    }
    if (error instanceof TurnedAwayError) throw error;
    throw new HandshakeError(`Cannot encrypt: no key came within ${timeoutMs} ms`, { cause: error });
  } finally {
    clearTimeout(timer);
  }

  const counter = () => {
    const nonce = new Uint8Array(12), view = new DataView(nonce.buffer);
    let next = 0n;
    return () => {
      view.setBigUint64(4, next++, true);
      return nonce;
    };
  };
  const sealNonce = counter(), openNonce = counter();
  const plain = new Uint8Array(headerBytes + maxBodyBytes);
  const length = new Uint8Array(4), lengthView = new DataView(length.buffer);
  let body = new Uint8Array();
  return {
    async write(frame, bytes = new Uint8Array()) {
      encodeFrame(frame, plain);
      plain.set(bytes, headerBytes);
      const text = plain.subarray(0, headerBytes + bytes.length);
      const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv: sealNonce() }, sealKey, text);
      const whole = new Uint8Array(4 + sealed.byteLength);
      new DataView(whole.buffer).setUint32(0, sealed.byteLength, true);
      whole.set(new Uint8Array(sealed), 4);
      await writeAll(connection, whole);
    },
    async read() {
      if (!await reader.fill(length)) return null;
      const bytes = lengthView.getUint32(0, true);
      if (bytes < headerBytes + tagBytes || bytes > longest) {
        throw new RangeError(`An encrypted frame has ${headerBytes + tagBytes} to ${longest} bytes, found ${bytes}`);
      }
      const sealed = new Uint8Array(bytes);
      if (!await reader.fill(sealed)) throw new Deno.errors.UnexpectedEof("The connection ended within a frame");
      const opened = await crypto.subtle.decrypt({ name: "AES-GCM", iv: openNonce() }, openKey, sealed).catch(
        (cause) => {
          throw new RangeError("An encrypted frame does not open: it was altered, or the tokens differ", { cause });
        },
      );
      const frame = decodeFrame(new Uint8Array(opened, 0, headerBytes));
      body = new Uint8Array(opened, headerBytes);
      if (body.length !== frame.bodyBytes) {
        throw new RangeError(`A frame's body has ${frame.bodyBytes} bytes by its header, found ${body.length}`);
      }
      return frame;
    },
    readBody(into) {
      into.set(body);
      return Promise.resolve();
    },
    get bytesRead() {
      return reader.bytes;
    },
    close: () => connection.close(),
  };
}
