/** From chunks of documents to lines of a tokenized file: in this thread, or spread over workers, in the same order. */
import type { MessagePort } from "node:worker_threads";
import { loadTokenizer, type Tokenizer } from "./tokenizer.ts";
import { type DataWorker, openDataWorker } from "./worker.ts";

/** Documents in order. */
export interface Chunk {
  readonly texts: readonly string[];
  /** Of instruction data: what stands before each text, context only. */
  readonly prompts?: readonly string[];
  /** The set that each document goes to. */
  readonly sets: Uint8Array;
}

/** What goes into one set. */
export interface EncodedLines {
  /** Lines of the `.bin` file. */
  readonly bytes: Uint8Array;
  /** Bytes of each line. */
  readonly sizes: Uint32Array;
  /** Tokens of each document. */
  readonly lengths: Uint32Array;
  /** The ids that occur, without signs, and how often each does. */
  readonly ids: Uint32Array;
  readonly counts: Uint32Array;
}

export interface EncodeOptions {
  /** Path of the tokenizer's file. */
  readonly tokenizer: string;
  readonly bos: boolean;
  readonly eos: boolean;
  /** Sets that documents go to. */
  readonly sets: number;
}

const prefix = new TextEncoder().encode('{"tokens": ['), suffix = new TextEncoder().encode("]}\n");

/** Lines of `{"tokens": [1, -2]}`, written digit by digit. */
class LineWriter {
  #bytes = new Uint8Array(1 << 16);
  #at = 0;
  readonly sizes: number[] = [];
  readonly lengths: number[] = [];

  write(tokens: ArrayLike<number>): void {
    const start = this.#at, most = start + prefix.length + suffix.length + tokens.length * 12;
    if (most > this.#bytes.length) {
      const grown = new Uint8Array(2 ** Math.ceil(Math.log2(most)));
      grown.set(this.#bytes.subarray(0, start));
      this.#bytes = grown;
    }
    const bytes = this.#bytes;
    bytes.set(prefix, start);
    let at = start + prefix.length;
    for (let i = 0; i < tokens.length; i++) {
      if (i > 0) bytes[at++] = 44;
      let value = tokens[i]!;
      if (value < 0) {
        bytes[at++] = 45;
        value = -value;
      }
      let digits = 1;
      for (let bound = 10; value >= bound; bound *= 10) digits++;
      for (let place = at + digits - 1; place >= at; place--) {
        const rest = value / 10 | 0;
        bytes[place] = 48 + value - rest * 10;
        value = rest;
      }
      at += digits;
    }
    bytes.set(suffix, at);
    this.#at = at + suffix.length;
    this.sizes.push(this.#at - start);
    this.lengths.push(tokens.length);
  }

  /** What was written, in a buffer of its own. */
  take = (): Uint8Array => this.#bytes.slice(0, this.#at);
}

/** The line of one sample. */
export function formatSample(tokens: ArrayLike<number>): Uint8Array {
  const lines = new LineWriter();
  lines.write(tokens);
  return lines.take();
}

/** Encodes chunks in this thread. */
function chunkEncoder(
  tokenizer: Tokenizer,
  { bos, eos, sets }: Omit<EncodeOptions, "tokenizer">,
): (chunk: Chunk) => EncodedLines[] {
  const counts = Array.from({ length: sets }, () => new Uint32Array(tokenizer.vocabSize));
  return ({ texts, prompts, sets: places }) => {
    const lines = counts.map(() => new LineWriter()), seen = counts.map((): number[] => []);
    texts.forEach((text, i) => {
      const prompt = prompts?.[i], ids: number[] = [];
      if (bos) ids.push(prompt === undefined ? tokenizer.bosId! : -tokenizer.bosId!);
      if (prompt !== undefined) { for (const id of tokenizer.encode(prompt)) ids.push(-id); }
      for (const id of tokenizer.encode(text)) ids.push(id);
      if (eos) ids.push(tokenizer.eosId!);
      const set = places[i]!, count = counts[set]!;
      for (const id of ids) if (count[Math.abs(id)]++ === 0) seen[set]!.push(Math.abs(id));
      lines[set]!.write(ids);
    });
    return lines.map((line, set) => {
      const ids = Uint32Array.from(seen[set]!), found = ids.map((id) => counts[set]![id]!);
      for (const id of ids) counts[set]![id] = 0;
      return {
        bytes: line.take(),
        sizes: Uint32Array.from(line.sizes),
        lengths: Uint32Array.from(line.lengths),
        ids,
        counts: found,
      };
    });
  };
}

/** In a worker: answers each chunk, in order. */
export function serveEncoder(port: MessagePort, options: EncodeOptions): (chunk: unknown) => void {
  const encode = chunkEncoder(loadTokenizer(options.tokenizer), options);
  return (chunk) => {
    const lines = encode(chunk as Chunk);
    port.postMessage(lines, lines.map(({ bytes }) => bytes.buffer as ArrayBuffer));
  };
}

export interface ChunkEncoders {
  /** Chunks that may be under way at once without one waiting for another. */
  readonly width: number;
  encode(chunk: Chunk): Promise<EncodedLines[]>;
  close(): Promise<void>;
}

/** Encoders over `workers` workers, or in this thread for none. */
export function openChunkEncoders(tokenizer: Tokenizer, options: EncodeOptions, workers: number): ChunkEncoders {
  if (workers === 0) {
    const encode = chunkEncoder(tokenizer, options);
    // A breath between chunks, so that timers and signals are heard.
    const breath = () => new Promise((resolve) => setTimeout(resolve, 0));
    return { width: 1, encode: async (chunk) => (await breath(), encode(chunk)), close: async () => {} };
  }
  interface Waiting {
    readonly resolve: (lines: EncodedLines[]) => void;
    readonly reject: (error: Error) => void;
  }
  const pool = Array.from({ length: workers }, () => {
    const waiting: Waiting[] = [];
    const worker: DataWorker = openDataWorker({ dataTask: "encode", options }, {
      onMessage: (lines) => waiting.shift()!.resolve(lines as EncodedLines[]),
      onEnd(error) {
        for (const { reject } of waiting.splice(0)) reject(new Error(`Tokenizing failed: ${error.message}`));
        failed = error;
      },
    });
    return { worker, waiting };
  });
  let failed: Error | undefined;
  return {
    width: workers,
    encode(chunk) {
      if (failed) return Promise.reject(new Error(`Tokenizing failed: ${failed.message}`));
      const { worker, waiting } = pool.reduce((a, b) => b.waiting.length < a.waiting.length ? b : a);
      const { promise, resolve, reject } = Promise.withResolvers<EncodedLines[]>();
      waiting.push({ resolve, reject });
      worker.send(chunk);
      return promise;
    },
    async close() {
      await Promise.all(pool.map(({ worker }) => worker.close()));
    },
  };
}
