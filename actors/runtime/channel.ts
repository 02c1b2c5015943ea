/** Channels: ordered messages both ways, and the news of their end. The runtime takes them from outside. */
import { decodeJson, encodeJson } from "./json.ts";
import type { Reason } from "./reason.ts";

export interface Channel {
  /**
   * Sends one message; false when the channel has ended and drops it.
   *
   * @throws {TypeError | RangeError | DOMException} when the message cannot travel; the channel stays open.
   */
  send(message: unknown): boolean;
  /** Sets the one receiver. What arrived before is kept for it. */
  receive(handler: (message: unknown) => void): void;
  /** Resolves once, when the channel has ended and holds nothing any more, with the reason. Never rejects. */
  readonly closed: Promise<Reason>;
  /** Sends what is queued, then ends the channel. */
  close(reason?: Reason): void;
}

export const lost = (detail: string): Reason => ({ kind: "lost", detail });

/** The part all channels share. `end` gives back what the channel holds, after which `closed` resolves. */
export function makeChannel(transmit: (message: unknown) => void, end: (reason: Reason) => void | Promise<void>) {
  const { promise: closed, resolve } = Promise.withResolvers<Reason>();
  let handler: ((message: unknown) => void) | undefined;
  let inbox: unknown[] = [];
  let open = true;
  const channel: Channel = {
    send(message) {
      if (open) transmit(message);
      return open;
    },
    receive(next) {
      handler = next;
      for (const message of inbox.splice(0)) handler(message);
    },
    closed,
    close(reason = lost("closed by this side")) {
      if (!open) return;
      open = false;
      inbox = [];
      const ended = end(reason);
      if (ended === undefined) resolve(reason);
      else ended.then(() => resolve(reason));
    },
  };
  const arrived = (message: unknown) => {
    if (!open) return;
    if (handler === undefined) inbox.push(message);
    else handler(message);
  };
  return { channel, arrived, isOpen: () => open };
}

/** Two ends in one thread. Messages are copied, as they would be by any other channel. */
export function channelPair(): [Channel, Channel] {
  type End = ReturnType<typeof makeChannel>;
  const ends: End[] = [];
  const make = (other: number) =>
    makeChannel(
      (message) => {
        const copy = structuredClone(message);
        queueMicrotask(() => ends[other].arrived(copy));
      },
      () => queueMicrotask(() => ends[other].channel.close(lost("closed by the other side"))),
    );
  ends.push(make(1), make(0));
  return [ends[0].channel, ends[1].channel];
}

export interface StreamOptions {
  /** Longest message, in bytes; a longer one is not sent, and closes the channel if received. @default {1048576} */
  readonly maxFrameBytes?: number;
  /** More than this waiting for a receiver that does not read closes the channel. @default {67108864} */
  readonly maxQueuedBytes?: number;
}

/** How long a channel tries to hand over what is queued when it closes. */
const flushMs = 1000;

/**
 * A channel over bytes: pipes, TCP connections. Each message is a frame: length (4 bytes, big-endian), then JSON in UTF-8.
 * Anything else closes the channel with a reason that begins "bad frame".
 */
export function streamChannel(
  readable: ReadableStream<Uint8Array>,
  writable: WritableStream<Uint8Array>,
  { maxFrameBytes = 2 ** 20, maxQueuedBytes = 2 ** 26 }: StreamOptions = {},
): Channel {
  const reader = readable.getReader();
  const writer = writable.getWriter();
  const ignore = () => {};
  writer.closed.catch(ignore);
  let writing: Promise<void> = Promise.resolve();
  let queuedBytes = 0;

  const { channel, arrived, isOpen } = makeChannel((message) => {
    const text = encodeJson(message);
    if (text.length > maxFrameBytes) {
      throw new RangeError(`Cannot send message: it has ${text.length} bytes, at most ${maxFrameBytes} are allowed`);
    }
    const frame = new Uint8Array(4 + text.length);
    new DataView(frame.buffer).setUint32(0, text.length);
    frame.set(text, 4);
    queuedBytes += frame.length;
    if (queuedBytes > maxQueuedBytes) {
      return channel.close(lost(`the other side does not read: ${queuedBytes} bytes wait for it`));
    }
    writing = writing.then(() => writer.write(frame)).then(
      () => void (queuedBytes -= frame.length),
      (error) => channel.close(lost(error.message)),
    );
  }, async () => {
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, flushMs);
    const quietly = (step: Promise<unknown>) => Promise.race([step.catch(ignore), late]);
    await quietly(writing.then(() => writer.close()));
    writer.abort().catch(ignore); // does nothing to what is closed
    await quietly(reader.cancel());
    clearTimeout(timer);
  });

  async function read(): Promise<void> {
    let buffer = new Uint8Array(2 ** 16);
    let filled = 0;
    const badFrame = (problem: string) => channel.close(lost(`bad frame: ${problem}`));
    while (isOpen()) {
      const { value, done } = await reader.read();
      if (done) {
        return filled > 0 ? badFrame("the stream ended inside it") : channel.close(lost("closed by the other side"));
      }
      if (filled + value.length > buffer.length) {
        const larger = new Uint8Array(Math.max(2 * buffer.length, filled + value.length));
        larger.set(buffer.subarray(0, filled));
        buffer = larger;
      }
      buffer.set(value, filled);
      filled += value.length;
      let begin = 0;
      while (filled - begin >= 4) {
        const size = new DataView(buffer.buffer).getUint32(begin);
        if (size > maxFrameBytes) return badFrame(`${size} bytes announced, at most ${maxFrameBytes} are allowed`);
        if (filled - begin < 4 + size) break;
        let message: unknown;
        try {
          message = decodeJson(buffer.subarray(begin + 4, begin + 4 + size));
        } catch (error) {
          return badFrame((error as Error).message);
        }
        begin += 4 + size;
        arrived(message);
      }
      buffer.copyWithin(0, begin, filled);
      filled -= begin;
    }
  }
  read().catch((error) => channel.close(lost(error.message)));
  return channel;
}
