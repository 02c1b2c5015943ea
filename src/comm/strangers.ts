/**
 * Those who have connected and not yet proved that they know the run's token. However many connect and say nothing, few
 * are listened to at once: the next is let in when one is through, or in place of one that has had its time. Those of the
 * run who connect in one moment thus wait for each other; only where their handshakes are slow are some shown out.
 */
import { closeQuietly } from "./handshake.ts";

/** How many are listened to at once. */
export const mostStrangers = 64;
/** A handshake takes milliseconds. The time is counted in waits, which a busy thread stretches for all alike. */
const waitMs = 10, courtesy = 10;

/** A connection, as far as it matters here. */
type Closable = Pick<Deno.TcpConn, "close">;

export class Strangers {
  #waits = 0;
  /** After how many waits each came, the oldest first. */
  readonly #since = new Map<Closable, number>();
  #change = Promise.withResolvers<void>();
  #closed = false;

  /** Waits until there is room for one more; false where there will be none, and the connection is closed. */
  async admit(connection: Closable): Promise<boolean> {
    while (!this.#closed && this.#since.size >= mostStrangers) {
      const [[oldest, since]] = this.#since as unknown as Iterable<[Closable, number]>;
      if (this.#waits - since < courtesy) await this.#wait();
      else if (this.delete(oldest)) closeQuietly(oldest);
    }
    if (this.#closed) connection.close();
    else this.#since.set(connection, this.#waits);
    return !this.#closed;
  }

  /** It is through, or gone; false where it was shown out before. */
  delete(connection: Closable): boolean {
    const was = this.#since.delete(connection);
    this.#change.resolve();
    this.#change = Promise.withResolvers();
    return was;
  }

  /** Shows all out, for good. */
  close(): void {
    this.#closed = true;
    for (const connection of [...this.#since.keys()]) if (this.delete(connection)) closeQuietly(connection);
    this.#change.resolve();
  }

  /** Until one is gone, or a while has passed. */
  async #wait(): Promise<void> {
    const { promise: late, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(() => {
      this.#waits++;
      resolve();
    }, waitMs);
    await Promise.race([this.#change.promise, late]);
    clearTimeout(timer);
  }
}
