/** Bytes of files, read again where a disk or a network file system fails for a moment. */

/** Bytes of `path` from `offset` on: `length` of them, fewer where the file ends. */
export type ReadRange = (path: string, offset: number, length: number) => Promise<Uint8Array<ArrayBuffer>>;

/** Opens the file for every range, so that nothing stays open between two ranges, and a retry starts afresh. */
export const readRange: ReadRange = async (path, offset, length) => {
  using file = await Deno.open(path, { read: true });
  await file.seek(offset, Deno.SeekMode.Start);
  const bytes = new Uint8Array(length);
  let filled = 0;
  while (filled < length) {
    const count = await file.read(bytes.subarray(filled));
    if (count === null) break;
    filled += count;
  }
  return bytes.subarray(0, filled);
};

export interface RetryOptions {
  /** Times a range is tried in all. @default {5} */
  readonly attempts?: number;
  /** Before the second try; each later wait is twice as long. @default {250} */
  readonly delayMs?: number;
  readonly onNotice?: (message: string) => void;
}

/** Tries reads that fail again; what is missing or forbidden is not tried again. */
export function retrying(read: ReadRange, options: RetryOptions = {}): ReadRange {
  const { attempts = 5, delayMs = 250, onNotice } = options;
  return async (path, offset, length) => {
    for (let attempt = 1;; attempt++) {
      try {
        return await read(path, offset, length);
      } catch (error) {
        if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotCapable) throw error;
        const { message } = error as Error;
        if (error instanceof Deno.errors.PermissionDenied || attempt >= attempts) {
          throw new Error(`Reading ${path} at byte ${offset} failed: ${message} (tried ${attempt} times)`, {
            cause: error,
          });
        }
        onNotice?.(`Reading ${path} at byte ${offset} failed (${message}); trying again`);
        await new Promise((resolve) => setTimeout(resolve, delayMs * 2 ** (attempt - 1)));
      }
    }
  };
}
