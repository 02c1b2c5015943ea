/**
 * The documents of many files in a shuffled order, epoch after epoch. Several files are read in turn, one document from
 * each; what was read is dealt out block by block, each block shuffled by itself. Every order is drawn from the seed, the
 * epoch and the block's number, so a place in the stream is a few numbers: where reading of the block began, and how
 * many of its documents were given out. The documents themselves are read again when the stream goes on there.
 */
import { mixSeeds } from "../mix_seeds.ts";
import { RandomState } from "../mt19937.ts";
import type { ChatTemplate } from "./chat.ts";
import type { ParquetReader } from "./parquet_reader.ts";
import type { ReadRange } from "./read_range.ts";
import { type Place, readRows, type Row, type RowFile } from "./row_file.ts";

/** A place in the stream, plain JSON. */
export interface StreamPlace {
  readonly epoch: number;
  /** Number of the block in its epoch. */
  readonly block: number;
  /** Documents of the block that were given out. */
  readonly index: number;
  /** Rows that could not be used, in this epoch before the block. */
  readonly corrupt: number;
  /** Files of this epoch that were begun before the block. */
  readonly opened: number;
  /** Which of the open files is read next. */
  readonly turn: number;
  /** The files open where the block began: number in the list, row, byte. */
  readonly open: readonly (readonly [file: number, row: number, byte: number])[];
}

export interface StreamDocument {
  readonly text: string;
  /** File and line or row, for messages. */
  readonly where: string;
  readonly path: string;
}

export interface DocumentStreamOptions {
  readonly files: readonly RowFile[];
  /** Column or field of the text. */
  readonly content: string;
  /** @default {1024} */
  readonly seed?: number;
  readonly read: ReadRange;
  /** Makes text of rows that hold a list of messages. */
  readonly chat?: ChatTemplate | undefined;
  /** Decodes Parquet. @default {that of this thread} */
  readonly parquet?: ParquetReader;
  /** Documents that are shuffled together. @default {1024} */
  readonly blockDocuments?: number;
  /** A block ends with the document that reaches this many characters, for the sake of memory. @default {2 ** 25} */
  readonly blockCharacters?: number;
  /** Files read in turn. @default {4} */
  readonly interleave?: number;
  /** Rows that may be corrupt in an epoch. @default {1000} */
  readonly maxCorrupt?: number;
  readonly onNotice?: (message: string) => void;
}

export interface DocumentStream {
  /** The next document, which stays the next; undefined at the end of an epoch. */
  peek(): Promise<StreamDocument | undefined>;
  /** Goes on to the document after the one last peeked at. */
  advance(): void;
  /** Begins the next epoch. */
  nextEpoch(): Promise<void>;
  /** Where the next document stands. */
  place(): StreamPlace;
  close(): Promise<void>;
}

const beginning = (epoch: number): StreamPlace => ({
  epoch,
  block: 0,
  index: 0,
  corrupt: 0,
  opened: 0,
  turn: 0,
  open: [],
});

/** Throws `RangeError` for a place that cannot be one of this stream. */
function checkPlace(place: StreamPlace, files: number): void {
  const { open, turn, ...numbers } = place;
  const natural = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
  const good = Object.values(numbers).every(natural) && Array.isArray(open) && natural(turn) &&
    place.opened <= files && turn <= open.length &&
    open.every((slot) => Array.isArray(slot) && slot.length === 3 && slot.every(natural) && slot[0] < files);
  if (!good) {
    throw new RangeError(`The saved position is no place in a stream of ${files} files: ${JSON.stringify(place)}`);
  }
}

/**
 * Goes on at `from`, or begins. Every document comes exactly once in an epoch. Reading rejects where a file cannot be
 * read, and with the file and line of the last of them where more than `maxCorrupt` rows are corrupt.
 */
export function openDocumentStream(options: DocumentStreamOptions, from?: StreamPlace): DocumentStream {
  const { files, content, read, chat, parquet, seed = 1024, onNotice } = options;
  const { blockDocuments = 1024, blockCharacters = 2 ** 25, interleave = 4, maxCorrupt = 1000 } = options;
  interface Slot {
    readonly file: number;
    readonly rows: AsyncGenerator<Row>;
    place: Place;
  }
  let begin: StreamPlace, index: number, corrupt: number, opened: number, turn: number;
  let slots: Slot[], order: Uint32Array, block: StreamDocument[] | undefined;

  const openSlot = (file: number, place: Place): Slot => ({
    file,
    place,
    rows: readRows(files[file]!, { content, from: place, read, chat, ...(parquet && { parquet }) }),
  });
  const start = (place: StreamPlace) => {
    begin = place;
    ({ index, corrupt, opened, turn } = place);
    slots = place.open.map(([file, row, byte]) => openSlot(file, { row, byte }));
    order = new RandomState(mixSeeds(seed, place.epoch)).permutation(files.length);
    block = undefined;
  };
  const closeSlots = async () => {
    for (const { rows } of slots) await rows.return(undefined);
  };

  const countCorrupt = (problem: string) => {
    corrupt++;
    if (corrupt > maxCorrupt) {
      throw new SyntaxError(`More than ${maxCorrupt} rows cannot be used; the last is ${problem}`);
    }
    if (Number.isInteger(Math.log2(corrupt))) {
      onNotice?.(`Left out ${corrupt === 1 ? "a row" : `${corrupt} rows`} that cannot be used: ${problem}`);
    }
  };

  const readNext = async (): Promise<StreamDocument | undefined> => {
    for (;;) {
      while (slots.length < interleave && opened < files.length) {
        slots.push(openSlot(order[opened++]!, { row: 0, byte: 0 }));
      }
      if (slots.length === 0) return undefined;
      if (turn >= slots.length) turn = 0;
      const slot = slots[turn]!;
      const { done, value } = await slot.rows.next();
      if (done) {
        if (opened < files.length) slots[turn] = openSlot(order[opened++]!, { row: 0, byte: 0 });
        else slots.splice(turn, 1);
        continue;
      }
      slot.place = value.place;
      if (value.problem !== undefined) {
        countCorrupt(value.problem);
        continue;
      }
      turn++;
      if (value.text.trim() === "") continue;
      return { text: value.text, where: value.where, path: files[slot.file]!.path };
    }
  };

  const readBlock = async (): Promise<StreamDocument[]> => {
    const documents: StreamDocument[] = [];
    for (let characters = 0; documents.length < blockDocuments && characters < blockCharacters;) {
      const document = await readNext();
      if (!document) break;
      documents.push(document);
      characters += document.text.length;
    }
    const shuffled = new RandomState(mixSeeds(seed, begin.epoch, begin.block + 1)).permutation(documents.length);
    return Array.from(shuffled, (i) => documents[i]!);
  };

  if (from) checkPlace(from, files.length);
  start(from ?? beginning(0));
  return {
    async peek() {
      block ??= await readBlock();
      if (index > block.length) {
        throw new RangeError(`The saved position is document ${index} of a block of ${block.length}: the data changed`);
      }
      if (index === block.length && block.length > 0) {
        begin = {
          epoch: begin.epoch,
          block: begin.block + 1,
          index: 0,
          corrupt,
          opened,
          turn,
          open: slots.map(({ file, place }) => [file, place.row, place.byte]),
        };
        index = 0;
        block = await readBlock();
      }
      return block[index];
    },
    advance: () => void index++,
    async nextEpoch() {
      await closeSlots();
      start(beginning(begin.epoch + 1));
    },
    place: () => ({ ...begin, index }),
    close: closeSlots,
  };
}
