/**
 * Rows of P = `packed_length` tokens from a stream of documents, tokenized on the way. Each document is cut to S tokens
 * and is a segment of its own. Padding (`pack_sample_into_one: false`): whole documents as long as they fit, the rest of
 * the row is padding. Filling (true): every row is full, and the document that its end cuts goes on in the next row.
 */
import { emptyRow, endSegment, type PackedRow } from "../packed_dataset.ts";
import type { DocumentStream, StreamDocument, StreamPlace } from "./document_stream.ts";

export interface StreamRowsOptions {
  readonly stream: DocumentStream;
  /** Signed tokens of a document, at most S; none leaves it out. */
  readonly encode: (document: StreamDocument) => Int32Array;
  /** P. */
  readonly packedLength: number;
  /** Fill every row instead of padding it. */
  readonly fill: boolean;
  /** Tokens of the next document that are in the rows before. @default {0} */
  readonly token?: number;
}

/** Between two rows. */
export interface RowsPlace {
  readonly stream: StreamPlace;
  /** Tokens of the next document that are in the rows before. */
  readonly token: number;
}

export interface StreamRows {
  /** The next row, epoch after epoch. One call at a time. */
  next(): Promise<PackedRow>;
  place(): RowsPlace;
}

export function createStreamRows(options: StreamRowsOptions): StreamRows {
  const { stream, encode, packedLength, fill } = options;
  let token = options.token ?? 0;
  let held: { readonly document: StreamDocument; readonly tokens: Int32Array } | undefined;
  let emptyEpochs = 0;

  /** Tokens of the next document, undefined at the end of an epoch. */
  const peek = async (): Promise<Int32Array | undefined> => {
    for (;;) {
      const document = await stream.peek();
      if (!document) return undefined;
      if (held?.document !== document) held = { document, tokens: encode(document) };
      if (held.tokens.length > token) return held.tokens;
      stream.advance();
      token = 0;
    }
  };

  return {
    async next() {
      const row = emptyRow(packedLength);
      let at = 0;
      while (at < packedLength) {
        const tokens = await peek();
        if (!tokens) {
          if (at > 0 && !fill) break;
          // With nothing in an epoch and the one after, there is nothing at all.
          if (++emptyEpochs > 2) {
            throw new RangeError("The data holds no document to train on: all are empty or too short");
          }
          await stream.nextEpoch();
          continue;
        }
        emptyEpochs = 0;
        const left = tokens.length - token;
        if (left > packedLength - at && !fill) break;
        const count = Math.min(left, packedLength - at);
        row.tokens.set(tokens.subarray(token, token + count), at);
        row.labels.fill(-100, at, at + count);
        row.labels.set(tokens.subarray(token + 1, token + count + 1), at);
        at += count;
        endSegment(row, at);
        token += count;
        if (token === tokens.length) {
          stream.advance();
          token = 0;
        }
      }
      if (at < packedLength) {
        row.labels.fill(-100, at);
        endSegment(row, packedLength);
      }
      return row;
    },
    place: () => ({ stream: stream.place(), token }),
  };
}
