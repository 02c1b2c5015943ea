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

/** The entries of a file of JSON lines, in order; none where there is no file. Lines that are damaged are left out. */
export function* readJsonLines(path: string): Generator<Readonly<Record<string, unknown>>> {
  for (const line of new TextDecoder().decode(bytesOf(path)).split("\n")) {
    const entry = parsed(line);
    if (entry !== undefined) yield entry;
  }
}

const NEWLINE = 10;

function bytesOf(path: string): Uint8Array {
  try {
    return Deno.readFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return new Uint8Array();
    throw error;
  }
}

/** Bytes up to the first line to be written again, or up to the last whole line. */
function keptBytes(path: string, resumeStep: number): number {
  const bytes = bytesOf(path), decoder = new TextDecoder();
  let start = 0;
  for (let end = bytes.indexOf(NEWLINE); end !== -1; end = bytes.indexOf(NEWLINE, start)) {
    const step = parsed(decoder.decode(bytes.subarray(start, end)))?.step;
    if (typeof step === "number" && step >= resumeStep) return start;
    start = end + 1;
  }
  return start;
}

function parsed(line: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const entry = JSON.parse(line);
    return typeof entry === "object" && entry !== null ? entry : undefined;
  } catch {
    return undefined; // a line damaged in the middle of the file is no reason to lose the rest
  }
}
