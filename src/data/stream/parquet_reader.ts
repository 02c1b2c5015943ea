/**
 * Parquet, decoded in a worker. A damaged page can keep the decoder without end or let it ask for any amount of memory;
 * here that ends the worker, and is told as any other damage.
 */
import { type DataWorker, openDataWorker } from "../worker.ts";
import type {
  FromParquetWorker,
  ParquetContents,
  ParquetRequest,
  ParquetValue,
  ToParquetWorker,
} from "./parquet_worker.ts";
import type { ReadRange } from "./read_range.ts";

export interface ParquetReaderOptions {
  /** Decoding that takes longer is given up. @default {60 s, and 1 s more for each 2 MB} */
  readonly limitMs?: number;
  /** Memory that decoding may take. @default {4096} */
  readonly maxHeapMb?: number;
}

/** A file as it is named in messages, and how to get at its bytes. */
export interface ParquetFile {
  readonly path: string;
  readonly bytes: number;
  readonly read: ReadRange;
}

/** One worker, which starts when it is first needed. All rejections are errors of the file: what is wrong with it. */
export interface ParquetReader {
  contents(file: ParquetFile): Promise<ParquetContents>;
  /** Rows `start` to `end` of the file, which are all in one group. */
  rows(file: ParquetFile, group: NonNullable<ParquetRequest["group"]>): Promise<readonly ParquetValue[]>;
  close(): Promise<void>;
}

/** Bytes cannot be read, which is no damage of the file's content. */
export class ReadFailure extends Error {}

export function openParquetReader(options: ParquetReaderOptions = {}): ParquetReader {
  const { limitMs, maxHeapMb = 4096 } = options;
  let worker: DataWorker | undefined;
  let current: { readonly file: ParquetFile; readonly settle: (reply: FromParquetWorker | Error) => void } | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined, bytesRead = 0, reading = 0, ready = false;
  /** Requests wait for each other, so that what takes too long is known by name. */
  let turn: Promise<unknown> = Promise.resolve();

  const drop = async () => {
    const dropped = worker;
    worker = undefined;
    await dropped?.close();
  };
  const watch = () => {
    clearTimeout(timer);
    if (!current || reading > 0) return;
    const limit = ready && limitMs !== undefined ? limitMs : 60_000 + bytesRead / 2000;
    timer = setTimeout(() => {
      current?.settle(new RangeError(`decoding it came to no end within ${Math.round(limit / 1000)} s`));
      drop();
    }, limit);
  };
  const serve = async (start: number, end: number, number: number) => {
    const asker = current, to = worker;
    if (!asker || !to) return;
    const { path, bytes, read } = asker.file;
    reading++;
    watch();
    let piece: ArrayBuffer | undefined;
    try {
      const found = await read(path, start, end - start);
      if (found.length < end - start) throw new SyntaxError(`${path} shrank while it was read: it had ${bytes} bytes`);
      piece = found.length === found.buffer.byteLength ? found.buffer : found.slice().buffer;
      bytesRead += found.length;
    } catch (error) {
      asker.settle(new ReadFailure((error as Error).message, { cause: error }));
    }
    reading--;
    if (worker === to) to.send({ answer: { number, ...(piece && { bytes: piece }) } } satisfies ToParquetWorker);
    watch();
  };
  const open = () => {
    ready = false;
    return openDataWorker({ dataTask: "parquet" }, {
      maxHeapMb,
      background: true,
      onMessage(message) {
        const reply = message as FromParquetWorker;
        if ("ready" in reply) {
          ready = true;
          watch();
        } else if ("ask" in reply) serve(...reply.ask, reply.number);
        else current?.settle(reply);
      },
      onEnd(error) {
        worker = undefined;
        current?.settle(error);
      },
    });
  };

  const request = (file: ParquetFile, group?: ParquetRequest["group"]): Promise<FromParquetWorker> => {
    const run = async () => {
      const { path, bytes } = file, { promise, resolve, reject } = Promise.withResolvers<FromParquetWorker>();
      worker ??= open();
      bytesRead = 0;
      current = {
        file,
        settle(reply) {
          current = undefined;
          watch();
          if (reply instanceof Error) reject(reply);
          else if ("error" in reply) reject(new Error(reply.error));
          else resolve(reply);
        },
      };
      worker.send({ request: { path, bytes, ...(group && { group }) } } satisfies ToParquetWorker);
      watch();
      return await promise;
    };
    const result = turn.then(run);
    turn = result.catch(() => {});
    return result;
  };
  return {
    contents: async (file) => (await request(file) as { contents: ParquetContents }).contents,
    rows: async (file, group) => (await request(file, group) as { values: readonly ParquetValue[] }).values,
    close: drop,
  };
}

/** The reader of this thread. Its worker waits for the next file, and does not keep the program alive. */
export const parquetReader: ParquetReader = openParquetReader();
