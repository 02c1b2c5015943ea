/** Spans of a step in Chrome's trace format: open the file in `chrome://tracing` or https://ui.perfetto.dev. */
import { AppendFile } from "./append_file.ts";
import type { FlightRecord } from "./flight_recorder.ts";

export interface TraceOptions {
  /** Shown as the process. @default {0} */
  readonly rank?: number;
  /** Milliseconds, monotonic. @default {performance.now} */
  readonly now?: () => number;
  /** Told once when the file cannot be written. @default {console.error} */
  readonly onError?: (message: string) => void;
}

export interface SpanOptions {
  /** A row of its own within the process: "gpu", "communicator". @default {"host"} */
  readonly lane?: string;
  /** Shown when the span is clicked. */
  readonly args?: Readonly<Record<string, unknown>>;
}

/** Takes a span that is over: {@linkcode TraceWriter.complete}, or another. */
export type SpanSink = (name: string, begin: number, end: number, options?: SpanOptions) => void;

/**
 * What a flight recorder kept of things that begin and end, as spans on the clock of this thread: notes that end in
 * `: begun` and `: done`, the first of a name with the first.
 */
export function recordedSpans(records: readonly FlightRecord[]): { name: string; begin: number; end: number }[] {
  const begun = new Map<string, number[]>();
  return records.flatMap(({ at, text }) => {
    const [, name, what] = text.match(/^(.*): (begun|done)$/) ?? [], time = at - performance.timeOrigin;
    if (name === undefined) return [];
    if (what === "begun") begun.set(name, [...begun.get(name) ?? [], time]);
    const begin = what === "done" ? begun.get(name)?.shift() : undefined;
    return begin === undefined ? [] : [{ name, begin, end: time }];
  });
}

/** A span that is going on; `end()` or the end of its `using` block closes it. */
export interface Span extends Disposable {
  end(): void;
}

/**
 * Collects spans and writes them with `flush()`, once a step. The format lets a file end anywhere after a whole event,
 * so what a killed process leaves can still be opened.
 *
 * @example
 * ```ts ignore
 * using trace = new TraceWriter("RUN/demo/traces/rank0.json");
 * {
 *   using _span = trace.span("forward", { args: { step: 1 } });
 * }
 * trace.flush();
 * ```
 */
export class TraceWriter implements Disposable {
  readonly #file: AppendFile;
  readonly #now: () => number;
  readonly #rank: number;
  readonly #lanes = new Map<string, number>();
  #events: object[] = [];
  #first = true;

  constructor(path: string, options: TraceOptions = {}) {
    const { rank = 0, onError } = options;
    this.#now = options.now ?? (() => performance.now());
    this.#rank = rank;
    this.#file = new AppendFile(path, { keep: 0, ...(onError ? { onError } : {}) });
    this.#put({ ph: "M", name: "process_name", tid: 0, args: { name: `rank ${rank}` } });
  }

  /** Begins a span now. */
  span(name: string, options: SpanOptions = {}): Span {
    const begin = this.#now();
    let open = true;
    const end = () => {
      if (!open) return;
      open = false;
      this.complete(name, begin, this.#now(), options);
    };
    return { end, [Symbol.dispose]: end };
  }

  /** A span measured elsewhere, on the same clock, in milliseconds: GPU time stamps, another thread. */
  complete(name: string, begin: number, end: number, options: SpanOptions = {}): void {
    const { lane = "host", args = {} } = options;
    this.#put({ ph: "X", name, tid: this.#lane(lane), ts: begin * 1000, dur: (end - begin) * 1000, args });
  }

  /** A value over time: memory, loss. */
  counter(name: string, values: Readonly<Record<string, number>>): void {
    this.#put({ ph: "C", name, tid: 0, ts: this.#now() * 1000, args: values });
  }

  #lane(name: string): number {
    const known = this.#lanes.get(name);
    if (known !== undefined) return known;
    const tid = this.#lanes.size + 1;
    this.#lanes.set(name, tid);
    this.#put({ ph: "M", name: "thread_name", tid, args: { name } });
    return tid;
  }

  #put(event: object): void {
    this.#events.push({ pid: this.#rank, ...event });
  }

  flush(): void {
    if (this.#events.length === 0) return;
    const lines = this.#events.map((event) => JSON.stringify(event)).join(",\n");
    this.#events = [];
    if (this.#file.append(new TextEncoder().encode((this.#first ? "[\n" : ",\n") + lines))) this.#first = false;
  }

  [Symbol.dispose](): void {
    this.flush();
    if (!this.#first) this.#file.append(new TextEncoder().encode("\n]\n"));
    this.#file[Symbol.dispose]();
  }
}
