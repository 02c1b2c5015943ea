/** Frames over a connection, and over memory for simulated worlds: the two have one interface. */
import type { ByteConnection } from "../handshake.ts";
import { decodeFrame, encodeFrame, type Frame, headerBytes } from "./frame.ts";

/** One end of a connection. Writers take turns, and there is one reader: the caller sees to both. */
export interface FrameStream {
  /** Resolves when the frame is handed over; `body` may be in shared memory, and may change afterwards. */
  write(frame: Frame, body?: Uint8Array): Promise<void>;
  /** The next header; null when the other end is gone. @throws {RangeError} on bytes that are none */
  read(): Promise<Frame | null>;
  /** The body that follows the header just read, all of it. */
  readBody(into: Uint8Array): Promise<void>;
  /** Bytes that have come so far, also those of what is not whole yet; absent where nothing comes in parts. */
  readonly bytesRead?: number;
  close(): void;
}

/** Bodies up to this size travel in one write with their header, at the cost of a copy. */
const joinBytes = 128 << 10;
/** Reads of at least this size go straight to their place. */
const directBytes = 32 << 10;

/** Bytes of a connection, with what was read beyond the need kept for the next read. */
export class BufferedReader {
  readonly #connection: ByteConnection;
  readonly #buffer = new Uint8Array(new SharedArrayBuffer(joinBytes));
  #begin = 0;
  #end = 0;
  /** Bytes that the connection gave. */
  bytes = 0;

  constructor(connection: ByteConnection) {
    this.#connection = connection;
  }

  /** Fills `into`; false when the other end is gone before its first byte. @throws {Deno.errors.UnexpectedEof} later */
  async fill(into: Uint8Array): Promise<boolean> {
    let filled = 0;
    while (filled < into.length) {
      if (this.#begin < this.#end) {
        const count = Math.min(this.#end - this.#begin, into.length - filled);
        into.set(this.#buffer.subarray(this.#begin, this.#begin + count), filled);
        this.#begin += count;
        filled += count;
        continue;
      }
      // What is large is read into its place, what is small into the buffer.
      const direct = into.length - filled >= directBytes;
      const count = await this.#connection.read(direct ? into.subarray(filled) : this.#buffer);
      if (count === null) {
        if (filled === 0) return false;
        throw new Deno.errors.UnexpectedEof(`The connection ended after ${filled} of ${into.length} bytes`);
      }
      this.bytes += count;
      if (direct) filled += count;
      else [this.#begin, this.#end] = [0, count];
    }
    return true;
  }
}

export async function writeAll(connection: ByteConnection, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}

/** Frames as they are, over a connection that has passed the handshake. */
export function plainFrames(connection: ByteConnection): FrameStream {
  const reader = new BufferedReader(connection);
  const header = new Uint8Array(headerBytes), staging = new Uint8Array(headerBytes + joinBytes);
  return {
    async write(frame, body) {
      encodeFrame(frame, staging);
      if (body && body.length > 0 && body.length <= joinBytes) staging.set(body, headerBytes);
      const joined = body && body.length <= joinBytes ? body.length : 0;
      await writeAll(connection, staging.subarray(0, headerBytes + joined));
      if (body && joined < body.length) await writeAll(connection, body);
    },
    read: async () => await reader.fill(header) ? decodeFrame(header) : null,
    async readBody(into) {
      if (into.length > 0 && !await reader.fill(into)) {
        throw new Deno.errors.UnexpectedEof("The connection ended between a header and its body");
      }
    },
    get bytesRead() {
      return reader.bytes;
    },
    close: () => connection.close(),
  };
}

/** Two ends joined by memory. A body is copied when it is written, as a socket would. */
export function framePair(): [FrameStream, FrameStream] {
  const queues: [Frame, Uint8Array][][] = [[], []], wake: (() => void)[] = [];
  let closed = false;
  const end = (own: 0 | 1): FrameStream => {
    let body = new Uint8Array();
    return {
      write(frame, bytes = new Uint8Array()) {
        if (closed) return Promise.reject(new Deno.errors.BrokenPipe("The other end of the channel is closed"));
        queues[1 - own]!.push([frame, bytes.slice()]);
        wake[1 - own]?.();
        return Promise.resolve();
      },
      async read() {
        const queue = queues[own]!;
        while (queue.length === 0 && !closed) await new Promise<void>((resolve) => wake[own] = resolve);
        const next = queue.shift();
        if (!next) return null;
        body = next[1] as Uint8Array<ArrayBuffer>;
        return next[0];
      },
      readBody(into) {
        into.set(body);
        return Promise.resolve();
      },
      close() {
        closed = true;
        for (const each of wake) each?.();
      },
    };
  };
  return [end(0), end(1)];
}
