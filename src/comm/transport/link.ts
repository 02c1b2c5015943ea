/**
 * What joins two ranks: messages in pieces over one stream of frames, matched by group and compared by tag.
 *
 * A small message is sent at once, and kept by the receiver until it is asked for. A large one waits until the receiver
 * has said that it has a place (`ready`), which it says as soon as it is asked, often before the sender gets there. So
 * the reader never stops for a rank that is late, and control frames always get through.
 */
import { describeTag, type Frame, maxBodyBytes, noTag, sameTag, type Tag } from "./frame.ts";
import type { FrameStream } from "./frame_stream.ts";

/** Something between ranks failed, and with it the step. */
export class CommunicationError extends Error {
  override readonly name = "CommunicationError";
}

/** Where a message goes, piece by piece. */
export interface Sink {
  /** Room for the next `length` bytes, which begin `offset` into the message; it may be shared memory. */
  place(offset: number, length: number): Uint8Array;
  /** They are there. */
  arrived?(offset: number, length: number): void;
}

/** Messages up to this size are sent unasked. */
const eagerBytes = 256 << 10;
/** What a receiver keeps of messages it has not asked for, before it stops reading. */
const maxEarlyBytes = 16 << 20;
const maxReadies = 1 << 16;

interface Posted {
  readonly tag: Tag;
  readonly bytes: number;
  readonly sink: Sink;
  received: number;
  resolve(): void;
  reject(error: Error): void;
}
interface Waiting {
  readonly tag: Tag;
  resolve(): void;
  reject(error: Error): void;
}

/** Queues by group. */
class Queues<T> extends Map<number, T[]> {
  add(group: number, item: T): void {
    const queue = this.get(group);
    if (queue) queue.push(item);
    else this.set(group, [item]);
  }
  first(group: number): T | undefined {
    return this.get(group)?.[0];
  }
  take(group: number): T | undefined {
    const queue = this.get(group), item = queue?.shift();
    if (queue?.length === 0) this.delete(group);
    return item;
  }
}

export interface LinkOptions {
  /** This rank. */
  readonly rank: number;
  /** The other one. */
  readonly peer: number;
  readonly stream: FrameStream;
  readonly onControl: (value: unknown) => void;
  /** The link is broken, or the ranks disagree. Told once. */
  readonly onFailure: (reason: string) => void;
}

export class Link {
  /** The last thing of a collective that the other rank sent. */
  lastHeard: Tag | undefined;
  /** Bytes of messages, both ways; control frames do not count. */
  bytesMoved = 0;
  /** Resolves when nothing comes any more. */
  readonly ended: Promise<void>;

  readonly #options: LinkOptions;
  readonly #posted = new Queues<Posted>();
  readonly #early = new Queues<{ tag: Tag; bytes: Uint8Array }>();
  readonly #offers = new Map<number, { tag: Tag; bytes: number }>();
  readonly #readies = new Queues<Tag>();
  readonly #waiting = new Queues<Waiting>();
  #readyCount = 0;
  #earlyBytes = 0;
  #space: (() => void) | undefined;
  #writing: Promise<void> = Promise.resolve();
  #failure: Error | undefined;
  #farewell = false;
  #framesWritten = 0;

  constructor(options: LinkOptions) {
    this.#options = options;
    this.ended = this.#pump();
  }

  /** Grows with whatever comes from the other rank: it lives. */
  get signs(): number {
    return this.#options.stream.bytesRead ?? this.bytesMoved;
  }

  /**
   * On a slow link what the other rank asks stands in line behind its data, for longer than an answer is waited for. So
   * while data comes and nothing goes, it is told every second that it comes.
   */
  #acknowledge(): ReturnType<typeof setInterval> | undefined {
    if (this.#options.stream.bytesRead === undefined) return undefined;
    let read = 0, written = 0;
    return setInterval(() => {
      const { bytesRead = 0 } = this.#options.stream, frames = this.#framesWritten;
      if (bytesRead > read && frames === written && !this.#farewell) {
        this.control({ kind: "receiving" }).catch(() => {});
      }
      [read, written] = [bytesRead, this.#framesWritten];
    }, 1000);
  }

  /**
   * Sends a message; resolves when all of it is handed over. What of `body` may leave must not change before.
   *
   * @param until resolves when so many bytes may leave; all may at once where there is none
   */
  async send(tag: Tag, body: Uint8Array, until?: (bytes: number) => Promise<void> | undefined): Promise<void> {
    if (this.#failure) throw this.#failure;
    if (body.length === 0) return;
    if (body.length > eagerBytes) await this.#granted(tag, body.length);
    for (let offset = 0; offset < body.length; offset += maxBodyBytes) {
      const piece = body.subarray(offset, offset + maxBodyBytes);
      await until?.(offset + piece.length);
      await this.#write({ kind: "data", tag, bodyBytes: piece.length, messageBytes: body.length }, piece);
      this.bytesMoved += piece.length;
    }
  }

  /** Receives the next message of the tag's group, which must be the one tagged so and have `bytes` bytes. */
  receive(tag: Tag, bytes: number, sink: Sink): Promise<void> {
    const received = this.#receive(tag, bytes, sink);
    received.catch(() => {}); // a caller that fails first does not look any more
    return received;
  }

  #receive(tag: Tag, bytes: number, sink: Sink): Promise<void> {
    if (this.#failure) return Promise.reject(this.#failure);
    if (bytes === 0) return Promise.resolve();
    const early = this.#posted.has(tag.group) ? undefined : this.#early.take(tag.group);
    if (early) {
      this.#earlyBytes -= early.bytes.length;
      this.#space?.();
      const wrong = this.#disagreement(tag, bytes, early.tag, early.bytes.length);
      if (wrong) return Promise.reject(wrong);
      sink.place(0, bytes).set(early.bytes);
      sink.arrived?.(0, bytes);
      return Promise.resolve();
    }
    const offer = this.#posted.has(tag.group) ? undefined : this.#offers.get(tag.group);
    if (offer) {
      this.#offers.delete(tag.group);
      const wrong = this.#disagreement(tag, bytes, offer.tag, offer.bytes);
      if (wrong) return Promise.reject(wrong);
    }
    const done = new Promise<void>((resolve, reject) => {
      this.#posted.add(tag.group, { tag, bytes, sink, received: 0, resolve, reject });
    });
    if (bytes > eagerBytes) {
      this.#write({ kind: "ready", tag, bodyBytes: 0, messageBytes: bytes }).catch(() => {}); // told by the reader
    }
    return done;
  }

  /** Says something beside the collectives. */
  control(value: unknown): Promise<void> {
    const body = new TextEncoder().encode(JSON.stringify(value));
    return this.#write({ kind: "control", tag: noTag, bodyBytes: body.length, messageBytes: body.length }, body);
  }

  /** Resolves when all that was said so far is handed over. */
  get flushed(): Promise<void> {
    return this.#writing;
  }

  /** What comes after this is no failure. */
  farewell(): void {
    this.#farewell = true;
  }

  /** Ends what waits, and all that comes after. */
  fail(error: Error): void {
    this.#failure ??= error;
    for (const queue of [...this.#posted.values(), ...this.#waiting.values()]) {
      for (const { reject } of queue) reject(this.#failure);
    }
    this.#posted.clear();
    this.#waiting.clear();
    this.#space?.();
  }

  close(): void {
    try {
      this.#options.stream.close();
    } catch {
      // closed by the other side
    }
  }

  #write(frame: Frame, body?: Uint8Array): Promise<void> {
    this.#framesWritten++;
    const written = this.#writing.then(() => this.#options.stream.write(frame, body));
    this.#writing = written.catch((error) => this.#broken(error as Error));
    return written.catch((error) => {
      throw this.#failure ?? error;
    });
  }

  #broken(cause: Error | null): void {
    if (this.#failure || this.#farewell) {
      this.fail(new CommunicationError(`Rank ${this.#options.peer} has left`));
      return;
    }
    const { peer } = this.#options;
    const last = this.lastHeard ? `; the last it sent was of ${describeTag(this.lastHeard)}` : "";
    const { ConnectionReset, BrokenPipe, UnexpectedEof } = Deno.errors; // the last: in the middle of a frame
    this.#fatal(
      cause === null || [ConnectionReset, BrokenPipe, UnexpectedEof].some((each) => cause instanceof each)
        ? `Rank ${peer} is gone: its connection closed${last}`
        : `The connection to rank ${peer} is broken: ${cause.message}${last}`,
    );
  }

  #fatal(reason: string): CommunicationError {
    const error = new CommunicationError(reason);
    if (!this.#failure) {
      this.fail(error);
      this.#options.onFailure(reason);
    }
    return error;
  }

  #disagreement(own: Tag, ownBytes: number, other: Tag, otherBytes: number): Error | undefined {
    if (sameTag(own, other) && ownBytes === otherBytes) return;
    const { rank, peer } = this.#options;
    return this.#fatal(
      `Ranks disagree: rank ${rank} is at ${describeTag(own)}, a message of ${ownBytes} bytes, ` +
        `but rank ${peer} is at ${describeTag(other)}, of ${otherBytes} bytes`,
    );
  }

  #granted(tag: Tag, bytes: number): Promise<void> {
    const ready = this.#readies.take(tag.group);
    if (ready) {
      this.#readyCount--;
      const wrong = this.#disagreement(tag, bytes, ready, bytes);
      return wrong ? Promise.reject(wrong) : Promise.resolve();
    }
    const granted = new Promise<void>((resolve, reject) => this.#waiting.add(tag.group, { tag, resolve, reject }));
    this.#write({ kind: "offer", tag, bodyBytes: 0, messageBytes: bytes }).catch(() => {}); // told by the reader
    return granted;
  }

  async #pump(): Promise<void> {
    const { stream } = this.#options, timer = this.#acknowledge();
    try {
      for (;;) {
        const frame = await stream.read();
        if (frame === null) return this.#broken(null);
        await this.#take(frame);
        if (this.#failure && !this.#farewell) return;
      }
    } catch (error) {
      this.#broken(error as Error);
      this.close();
    } finally {
      clearInterval(timer);
    }
  }

  async #take({ kind, tag, bodyBytes, messageBytes }: Frame): Promise<void> {
    const { stream, onControl } = this.#options, { group } = tag;
    if (kind === "control") {
      const body = new Uint8Array(bodyBytes);
      await stream.readBody(body);
      return onControl(JSON.parse(new TextDecoder().decode(body)));
    }
    this.lastHeard = tag;
    this.bytesMoved += bodyBytes;
    if (kind === "ready") {
      const sender = this.#waiting.take(group);
      if (sender) {
        const wrong = this.#disagreement(sender.tag, messageBytes, tag, messageBytes);
        if (wrong) sender.reject(wrong);
        else sender.resolve();
      } else if (++this.#readyCount > maxReadies) {
        throw new RangeError(`more than ${maxReadies} messages are asked for`);
      } else this.#readies.add(group, tag);
      return;
    }
    const posted = this.#posted.first(group);
    if (kind === "offer") {
      if (posted) this.#disagreement(posted.tag, posted.bytes, tag, messageBytes);
      else this.#offers.set(group, { tag, bytes: messageBytes });
      return;
    }
    if (!posted) {
      if (messageBytes > eagerBytes || bodyBytes !== messageBytes) {
        throw new RangeError(`a message of ${messageBytes} bytes came unasked; ${eagerBytes} are allowed`);
      }
      while (this.#earlyBytes + bodyBytes > maxEarlyBytes && !this.#failure) {
        await new Promise<void>((resolve) => this.#space = resolve);
      }
      const bytes = new Uint8Array(bodyBytes);
      await stream.readBody(bytes);
      // It may have been asked for meanwhile.
      const late = this.#posted.first(group);
      if (!late) {
        this.#earlyBytes += bodyBytes;
        this.#early.add(group, { tag, bytes });
        return;
      }
      if (this.#disagreement(late.tag, late.bytes, tag, messageBytes)) return;
      this.#posted.take(group);
      late.sink.place(0, bodyBytes).set(bytes);
      late.sink.arrived?.(0, bodyBytes);
      return late.resolve();
    }
    if (this.#disagreement(posted.tag, posted.bytes, tag, messageBytes)) return;
    if (posted.received + bodyBytes > posted.bytes) {
      throw new RangeError(`a message of ${messageBytes} bytes has more pieces than fit`);
    }
    await stream.readBody(posted.sink.place(posted.received, bodyBytes));
    if (this.#failure) return;
    posted.sink.arrived?.(posted.received, bodyBytes);
    posted.received += bodyBytes;
    if (posted.received < posted.bytes) return;
    this.#posted.take(group);
    posted.resolve();
  }
}
