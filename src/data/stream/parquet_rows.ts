/** Documents of Parquet files: a column of text, read one row group at a time. */
import { type ChatTemplate, chatText } from "./chat.ts";
import { type ParquetReader, parquetReader, ReadFailure } from "./parquet_reader.ts";
import type { ReadRange } from "./read_range.ts";
import type { Place, Row, RowFile } from "./row_file.ts";

export interface ReadParquetOptions {
  readonly content: string;
  readonly from: Place;
  readonly read: ReadRange;
  /** Makes text of lists of messages. */
  readonly chat?: ChatTemplate | undefined;
  /** @default {parquetReader} */
  readonly parquet?: ParquetReader;
}

/**
 * The texts of column `content` from a place on. A row without text comes with a `problem`. Throws `SyntaxError` naming
 * the file where it cannot be read or has no such column.
 */
export async function* readParquetRows(
  { path, bytes }: Pick<RowFile, "path" | "bytes">,
  { content, from, read, chat, parquet = parquetReader }: ReadParquetOptions,
): AsyncGenerator<Row & { /** Of the file's rows, how many are behind. */ readonly share: number }> {
  const file = { path, bytes, read };
  const damaged = (where: string, error: unknown) =>
    error instanceof ReadFailure
      ? error.cause
      : new SyntaxError(`${path} is damaged or not Parquet (${where}): ${(error as Error).message}`, { cause: error });
  const { columns, groups } = await parquet.contents(file).catch((error) => {
    throw damaged("its table of contents", error);
  });
  if (!columns.includes(content)) {
    throw new SyntaxError(
      `${path} has no column "${content}"; data.content_name may be ${columns.join(", ") || "none"}`,
    );
  }
  const rows = groups.reduce((sum, count) => sum + count, 0);
  let row = 0;
  for (const [index, count] of groups.entries()) {
    const end = row + count, start = Math.max(row, from.row);
    row = end;
    if (start >= end) continue;
    const values = await parquet.rows(file, { index, column: content, start, end }).catch((error) => {
      throw damaged(`row group ${index}, rows ${start} to ${end - 1}`, error);
    });
    for (const [i, value] of values.entries()) {
      const where = `${path}, row ${start + i}`, place = { row: start + i + 1, byte: 0 }, share = place.row / rows;
      const made = typeof value === "string"
        ? { text: value }
        : "messages" in value
        ? chatText(value.messages, chat)
        : { problem: value.other };
      if ("text" in made) yield { text: made.text, where, place, share };
      else yield { problem: `${where}: no text in the column "${content}", but ${made.problem}`, place, share };
    }
  }
}
