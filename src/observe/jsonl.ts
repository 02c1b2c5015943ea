/** Metrics as JSON lines: one object a line, each carrying the `step` (batch) it belongs to. */
import { AppendFile } from "./append_file.ts";

export interface JsonLinesOptions {
  /** The first step that this run will write; lines of this step and later ones are cut off. @default {0} */
  readonly resumeStep?: number;
  /** Told once when the file cannot be written. @default {console.error} */
  readonly onError?: (message: string) => void;
}

/**
 * Opens `path` and cuts off what a resumed run will write again, so that the curve has every step once: everything from
 * the first line whose `step` is `resumeStep` or later, and a torn last line. Lines without a `step` stay.
 *
 * Numbers that JSON lacks (not-a-number, infinities) are written as `null`.
 *
 * @example
 * ```ts ignore
 * using lines = new JsonLinesWriter("RUN/demo/metrics.jsonl", { resumeStep: 100 });
 * lines.write({ step: 100, loss: 3.2 });
 * ```
 */
export class JsonLinesWriter implements Disposable {
  readonly #file: AppendFile;

  constructor(path: string, options: JsonLinesOptions = {}) {
    const { resumeStep = 0, onError } = options;
    this.#file = new AppendFile(path, { keep: keptBytes(path, resumeStep), ...(onError ? { onError } : {}) });
  }

  /** Appends one line and hands it to the system at once. */
  write(entry: { readonly step: number } & Readonly<Record<string, unknown>>): void {
    this.#file.append(new TextEncoder().encode(JSON.stringify(entry) + "\n"));
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

const NEWLINE = 10;

/** Bytes up to the first line to be written again, or up to the last whole line. */
function keptBytes(path: string, resumeStep: number): number {
  let bytes: Uint8Array;
  try {
    bytes = Deno.readFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return 0;
    throw error;
  }
  const decoder = new TextDecoder();
  let start = 0;
  for (let end = bytes.indexOf(NEWLINE); end !== -1; end = bytes.indexOf(NEWLINE, start)) {
    const step = stepOf(decoder.decode(bytes.subarray(start, end)));
    if (step !== undefined && step >= resumeStep) return start;
    start = end + 1;
  }
  return start;
}

function stepOf(line: string): number | undefined {
  try {
    const step = JSON.parse(line)?.step;
    return typeof step === "number" ? step : undefined;
  } catch {
    return undefined; // a line damaged in the middle of the file is no reason to lose the rest
  }
}
