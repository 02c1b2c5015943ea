/**
 * The flight recorder: the last things that a rank did, in a ring of shared memory, so that its communicator can tell them
 * while its own thread blocks. Writing costs a few hundred nanoseconds and allocates nothing that stays.
 */

export interface FlightRecord {
  /** Milliseconds since 1970. */
  readonly at: number;
  readonly text: string;
}

const slots = 512, slotBytes = 128, headerBytes = 8, textBytes = slotBytes - 9;

/**
 * @example
 * ```ts
 * import { FlightRecorder } from "./flight_recorder.ts";
 * const recorder = new FlightRecorder();
 * recorder.note("forward 0 of micro-batch 3");
 * const elsewhere = new FlightRecorder(recorder.memory); // in another thread
 * console.assert(elsewhere.since(0).records[0]!.text === "forward 0 of micro-batch 3");
 * ```
 */
export class FlightRecorder {
  readonly #count: Int32Array;
  readonly #view: DataView;
  readonly #bytes: Uint8Array;
  readonly #encoder = new TextEncoder();
  readonly #decoder = new TextDecoder();

  constructor(readonly memory: SharedArrayBuffer = new SharedArrayBuffer(headerBytes + slots * slotBytes)) {
    this.#count = new Int32Array(memory, 0, 1);
    this.#view = new DataView(memory, headerBytes);
    this.#bytes = new Uint8Array(memory, headerBytes);
  }

  /** Keeps what is done now; a long text is cut. Several threads may write. */
  note(text: string): void {
    const number = Atomics.add(this.#count, 0, 1) >>> 0, at = number % slots * slotBytes;
    const encoded = this.#encoder.encode(text).subarray(0, textBytes);
    this.#view.setFloat64(at, performance.timeOrigin + performance.now());
    this.#bytes[at + 8] = encoded.length;
    this.#bytes.set(encoded, at + 9);
  }

  /** Records from number `cursor` on, as far as they are kept, at most the last `most`; and the next cursor. */
  since(cursor: number, most = slots): { records: FlightRecord[]; next: number } {
    const next = Atomics.load(this.#count, 0) >>> 0, records: FlightRecord[] = [];
    for (let number = Math.max(cursor, next - Math.min(most, slots)); number < next; number++) {
      const at = number % slots * slotBytes;
      // A copy: the decoder takes no shared memory.
      const text = this.#decoder.decode(this.#bytes.slice(at + 9, at + 9 + this.#bytes[at + 8]!));
      records.push({ at: this.#view.getFloat64(at), text });
    }
    return { records, next };
  }
}
