/**
 * TensorBoard event files: TFRecord frames around `Event` protocol buffers, both written by hand (no package does it).
 *
 * Formats: tensorflow/core/lib/io/record_writer.cc, tensorflow/core/util/event.proto, framework/summary.proto.
 */
import { AppendFile } from "./append_file.ts";
import { crc32c } from "./crc32c.ts";

export interface TensorBoardOptions {
  /** Folder of this writer alone; made where absent. */
  readonly folder: string;
  /** Part of the file's name. @default {"localhost"} */
  readonly host?: string;
  /** Tells readers to forget what earlier files hold from this step on. @default {0} */
  readonly purgeStep?: number;
  /** Steps held back before they are written (`monitor.tensorboard.queue_max_length`). @default {1} */
  readonly queueMaxLength?: number;
  /** From this step on everything is written at once. */
  readonly totalSteps?: number;
  /** Milliseconds since 1970. @default {Date.now} */
  readonly now?: () => number;
  /** Told once when the file cannot be written. @default {console.error} */
  readonly onError?: (message: string) => void;
}

let files = 0; // two writers of one process and second must not share a file

/**
 * @example
 * ```ts ignore
 * using board = new TensorBoardWriter({ folder: "RUN/demo/tensorboards/dp=0_tp=0_pp=0" });
 * board.addScalar("loss", 3.2, 1);
 * board.addScalars("grad_norm", { "0_default": 1.5 }, 1);
 * board.addText("config", "| a | b |", 0);
 * ```
 */
export class TensorBoardWriter implements Disposable {
  readonly path: string;
  readonly #file: AppendFile;
  readonly #now: () => number;
  readonly #queueMaxLength: number;
  readonly #totalSteps: number;
  #queue: Uint8Array[] = [];
  #queuedSteps = 0;
  #lastStep = -Infinity;

  constructor(options: TensorBoardOptions) {
    const { folder, host = "localhost", purgeStep = 0, queueMaxLength = 1, totalSteps = Infinity, onError } = options;
    this.#now = options.now ?? Date.now;
    this.#queueMaxLength = queueMaxLength;
    this.#totalSteps = totalSteps;
    Deno.mkdirSync(folder, { recursive: true });
    const seconds = String(Math.floor(this.#now() / 1000)).padStart(10, "0");
    this.path = `${folder}/events.out.tfevents.${seconds}.${host}.${Deno.pid}.${files++}`;
    this.#file = new AppendFile(this.path, { keep: 0, ...(onError ? { onError } : {}) });
    this.#put(text(3, "brain.Event:2"), 0);
    if (purgeStep > 0) this.#put(bytes(7, varint(1, 1)), purgeStep); // SessionLog { status: START }
    this.flush();
  }

  addScalar(tag: string, value: number, step: number): void {
    this.#step(step);
    this.#put(bytes(5, bytes(1, concat(text(1, tag), float(2, value)))), step);
    if (step >= this.#totalSteps) this.flush();
  }

  /** A group of scalars: TensorBoard shows `{tag}/{name}` of one tag together. */
  addScalars(tag: string, values: Readonly<Record<string, number>>, step: number): void {
    for (const [name, value] of Object.entries(values)) this.addScalar(`${tag}/${name}`, value, step);
  }

  /** Markdown, shown under "Text". */
  addText(tag: string, markdown: string, step = 0): void {
    const metadata = bytes(1, text(1, "text")); // SummaryMetadata { plugin_data { plugin_name } }
    const shape = bytes(2, bytes(2, varint(1, 1))); // one dimension of size 1
    const tensor = concat(varint(1, 7), shape, text(8, markdown)); // DT_STRING
    this.#put(bytes(5, bytes(1, concat(text(1, tag), bytes(9, metadata), bytes(8, tensor)))), step);
  }

  /** Counts distinct increasing steps; the queue goes out when the next step would overfill it. */
  #step(step: number): void {
    if (step <= this.#lastStep) return;
    if (this.#queuedSteps >= this.#queueMaxLength) this.flush();
    this.#lastStep = step;
    this.#queuedSteps++;
  }

  #put(content: Uint8Array, step: number): void {
    const event = concat(double(1, this.#now() / 1000), varint(2, step), content);
    this.#queue.push(frame(event));
  }

  flush(): void {
    if (this.#queue.length > 0) this.#file.append(concat(...this.#queue));
    this.#queue = [];
    this.#queuedSteps = 0;
  }

  [Symbol.dispose](): void {
    this.flush();
    this.#file[Symbol.dispose]();
  }
}

/** Length, masked checksum of the length, content, masked checksum of the content; little-endian. */
function frame(content: Uint8Array): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(content.length + 16);
  const view = new DataView(out.buffer);
  view.setBigUint64(0, BigInt(content.length), true);
  view.setUint32(8, masked(out.subarray(0, 8)), true);
  out.set(content, 12);
  view.setUint32(12 + content.length, masked(content), true);
  return out;
}

/** Rotated and shifted, so that a checksum of data that holds checksums stays a good one. */
function masked(content: Uint8Array): number {
  const crc = crc32c(content);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

// Protocol buffer fields: key = number · 8 + wire type (0 varint, 1 eight bytes, 2 length and content, 5 four bytes).

function concat(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function rawVarint(value: number): Uint8Array {
  const out: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(Math.trunc(value)));
  for (; rest > 127n; rest >>= 7n) out.push(Number(rest & 127n) | 128);
  return Uint8Array.from([...out, Number(rest)]);
}

const varint = (field: number, value: number) => concat(rawVarint(field * 8), rawVarint(value));

const bytes = (field: number, content: Uint8Array) =>
  concat(rawVarint(field * 8 + 2), rawVarint(content.length), content);

const text = (field: number, content: string) => bytes(field, new TextEncoder().encode(content));

function double(field: number, value: number): Uint8Array {
  const content = new Uint8Array(8);
  new DataView(content.buffer).setFloat64(0, value, true);
  return concat(rawVarint(field * 8 + 1), content);
}

function float(field: number, value: number): Uint8Array {
  const content = new Uint8Array(4);
  new DataView(content.buffer).setFloat32(0, value, true);
  return concat(rawVarint(field * 8 + 5), content);
}
