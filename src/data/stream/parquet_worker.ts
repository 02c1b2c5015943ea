/** The worker that decodes Parquet (see `parquet_reader.ts`). It has no file of its own: it asks for the bytes it needs. */
import type { MessagePort } from "node:worker_threads";
import {
  type AsyncBuffer,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
} from "hyparquet";
import { compressors } from "hyparquet-compressors";

export interface ParquetRequest {
  readonly path: string;
  readonly bytes: number;
  /** The rows of this group from a row on, of one column; else what the file holds. */
  readonly group?: { readonly index: number; readonly column: string; readonly start: number; readonly end: number };
}

export interface ParquetContents {
  readonly columns: readonly string[];
  /** Rows of each group. */
  readonly groups: readonly number[];
}

/** What is in a row: its text, or messages of a conversation, or the name of what it is instead. */
export type ParquetValue = string | { readonly messages: readonly unknown[] } | { readonly other: string };

export type FromParquetWorker =
  | { readonly ready: true }
  | { readonly ask: readonly [start: number, end: number]; readonly number: number }
  | { readonly contents: ParquetContents }
  | { readonly values: readonly ParquetValue[] }
  | { readonly error: string };

export interface ToParquetWorker {
  readonly request?: ParquetRequest;
  /** The bytes that were asked for under this number; none where they cannot be read. */
  readonly answer?: { readonly number: number; readonly bytes?: ArrayBuffer };
}

/** Files whose table of contents is kept. */
const keptFiles = 8;

export function serveParquet(port: MessagePort): (message: unknown) => void {
  const waiting = new Map<number, { resolve: (bytes: ArrayBuffer) => void; reject: (error: Error) => void }>();
  const known = new Map<string, Promise<FileMetaData>>();
  let asked = 0;
  const post = (message: FromParquetWorker) => port.postMessage(message);
  const ask = (start: number, end: number): Promise<ArrayBuffer> => {
    const { promise, resolve, reject } = Promise.withResolvers<ArrayBuffer>();
    promise.catch(() => {}); // pieces are asked for ahead; once one fails, nobody waits for the others
    waiting.set(asked, { resolve, reject });
    post({ ask: [start, end], number: asked++ });
    return promise;
  };
  const answer = async ({ path, bytes, group }: ParquetRequest): Promise<FromParquetWorker> => {
    const file: AsyncBuffer = {
      byteLength: bytes,
      slice(start, end = bytes) {
        if (start >= 0 && end <= bytes && start <= end) return ask(start, end);
        throw new RangeError(`bytes ${start} to ${end} of ${bytes}`);
      },
    };
    const key = `${bytes}:${path}`;
    let metadata = known.get(key);
    if (!metadata) {
      if (known.size >= keptFiles) known.delete(known.keys().next().value!);
      known.set(key, metadata = parquetMetadataAsync(file));
    }
    try {
      const whole = await metadata;
      if (!group) {
        const columns = parquetSchema(whole).children.map(({ element }) => element.name);
        return { contents: { columns, groups: whole.row_groups.map((group) => Number(group.num_rows)) } };
      }
      const { column, start, end } = group;
      const rows = await parquetReadObjects({
        file,
        metadata: whole,
        columns: [column],
        rowStart: start,
        rowEnd: end,
        compressors,
      });
      if (rows.length !== end - start) throw new RangeError(`${rows.length} rows instead of ${end - start}`);
      const values = rows.map((row): ParquetValue => {
        const value = row[column] as unknown;
        if (typeof value === "string") return value;
        return Array.isArray(value) ? { messages: value } : { other: value === null ? "null" : typeof value };
      });
      return { values };
    } catch (error) {
      known.delete(key);
      return { error: (error as Error).message };
    }
  };
  post({ ready: true });
  return (message) => {
    const { request, answer: bytes } = message as ToParquetWorker;
    if (bytes) {
      const asker = waiting.get(bytes.number);
      waiting.delete(bytes.number);
      if (bytes.bytes) asker?.resolve(bytes.bytes);
      else asker?.reject(new Error("not read"));
    } else if (request) answer(request).then(post);
  };
}
