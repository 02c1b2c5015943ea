/** Documents of Parquet files: a column of text, read one row group at a time. */
import { type AsyncBuffer, parquetMetadataAsync, parquetReadObjects, parquetSchema } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import type { ReadRange } from "./read_range.ts";
import type { Place, Row, RowFile } from "./row_file.ts";

/**
 * The texts of column `content` from a place on. A row without text comes with a `problem`. Throws `SyntaxError` naming
 * the file where it cannot be read or has no such column.
 */
export async function* readParquetRows(
  file: RowFile,
  { content, from, read }: { readonly content: string; readonly from: Place; readonly read: ReadRange },
): AsyncGenerator<Row> {
  const { path, bytes } = file;
  let failed: unknown; // an error of reading is not one of the content
  const slice = async (start: number, end = bytes): Promise<ArrayBuffer> => {
    if (!(start >= 0 && end <= bytes && start <= end)) throw new RangeError(`bytes ${start} to ${end} of ${bytes}`);
    try {
      const piece = await read(path, start, end - start);
      if (piece.length < end - start) throw new SyntaxError(`${path} shrank while it was read: it had ${bytes} bytes`);
      return piece.length === piece.buffer.byteLength ? piece.buffer : piece.slice().buffer;
    } catch (error) {
      failed = error;
      throw error;
    }
  };
  const buffer: AsyncBuffer = {
    byteLength: bytes,
    slice(start, end) {
      const piece = slice(start, end);
      // Pieces are asked for ahead; once one fails, nobody waits for the others, whose errors must not end the program.
      piece.catch(() => {});
      return piece;
    },
  };
  const damaged = (where: string, error: unknown) =>
    failed ?? new SyntaxError(`${path} is damaged or not Parquet (${where}): ${(error as Error).message}`, {
      cause: error,
    });
  const metadata = await parquetMetadataAsync(buffer).catch((error) => {
    throw damaged("its table of contents", error);
  });
  const columns = parquetSchema(metadata).children.map(({ element }) => element.name);
  if (!columns.includes(content)) {
    throw new SyntaxError(
      `${path} has no column "${content}"; data.content_name may be ${columns.join(", ") || "none"}`,
    );
  }
  let row = 0;
  for (const [index, group] of metadata.row_groups.entries()) {
    const end = row + Number(group.num_rows), start = Math.max(row, from.row);
    row = end;
    if (start >= end) continue;
    let values: Record<string, unknown>[];
    try {
      values = await parquetReadObjects({
        file: buffer,
        metadata,
        columns: [content],
        rowStart: start,
        rowEnd: end,
        compressors,
      });
      if (values.length !== end - start) throw new RangeError(`${values.length} rows instead of ${end - start}`);
    } catch (error) {
      throw damaged(`row group ${index}, rows ${start} to ${end - 1}`, error);
    }
    for (let i = 0; i < values.length; i++) {
      const text = values[i]![content], where = `${path}, row ${start + i}`, place = { row: start + i + 1, byte: 0 };
      yield typeof text === "string" ? { text, where, place } : {
        problem: `${where}: no text in the column "${content}", but ${text === null ? "null" : typeof text}`,
        place,
      };
    }
  }
}
