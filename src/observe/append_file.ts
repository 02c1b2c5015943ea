/** A file that only grows by whole records, and stays readable whatever happens between two of them. */
import { fileError } from "../checkpoint/durable.ts";

/**
 * Appends records one write each. A write that fails is taken back and reported once, never raised: a full disk must not
 * cost the run. Nothing is held back in memory, so a killed process loses nothing.
 */
export class AppendFile implements Disposable {
  readonly path: string;
  readonly #file: Deno.FsFile;
  readonly #onError: (message: string) => void;
  #length: number;
  #failing = false;

  /** Opens `path` for appending after its first `keep` bytes, creating it where absent. @default keep: all */
  constructor(path: string, options: { keep?: number; onError?: (message: string) => void } = {}) {
    this.path = path;
    this.#onError = options.onError ?? ((message) => console.error(message));
    this.#file = Deno.openSync(path, { read: true, write: true, create: true });
    const { size } = this.#file.statSync();
    this.#length = Math.min(options.keep ?? size, size);
    if (this.#length < size) this.#file.truncateSync(this.#length);
    this.#file.seekSync(this.#length, Deno.SeekMode.Start);
  }

  /** False where the record could not be written. */
  append(record: Uint8Array): boolean {
    try {
      if (this.#failing) this.#takeBack();
      for (let written = 0; written < record.length;) written += this.#file.writeSync(record.subarray(written));
      this.#length += record.length;
      this.#failing = false;
      return true;
    } catch (error) {
      if (!this.#failing) {
        this.#onError(`${fileError("write", this.path, error).message}. Records are dropped until writing works again`);
      }
      this.#failing = true;
      try {
        this.#takeBack();
      } catch {
        // The next append tries again; a torn tail is also cut off when the file is next opened.
      }
      return false;
    }
  }

  #takeBack(): void {
    this.#file.truncateSync(this.#length);
    this.#file.seekSync(this.#length, Deno.SeekMode.Start);
  }

  [Symbol.dispose](): void {
    this.#file.close();
  }
}
