/**
 * What a person sees while a run trains: one live line on a terminal, plain lines elsewhere. Where standard output is
 * promised to programs (`json`), it carries JSON lines only, and everything for people goes to standard error.
 */
import { formatBytes, formatCount, formatDuration, formatLoss } from "./format.ts";

/** All but the two counts may be unknown. */
export interface TrainingStatus {
  /** Steps done. */
  readonly step: number;
  readonly totalSteps: number;
  /** Shown in front: "evaluating", "saving". */
  readonly phase?: string | undefined;
  readonly loss?: number | undefined;
  readonly validationLoss?: number | undefined;
  readonly learningRate?: number | undefined;
  readonly gradNorm?: number | undefined;
  readonly tokensPerSecond?: number | undefined;
  readonly secondsLeft?: number | undefined;
  /** Of the device, in bytes. */
  readonly memory?: number | undefined;
}

interface Field {
  readonly label: string;
  readonly value: string;
  readonly unit: string;
  /** Where room is short, low ones go first. */
  readonly weight: number;
  readonly alarming?: boolean;
}

const SEPARATOR = "  ";
const MIN_BAR = 6;
const MAX_BAR = 30;
const plain = (field: Field) => [field.label, field.value, field.unit].filter(Boolean).join(" ");

function fieldsOf(state: TrainingStatus, stepLabel = "step"): Field[] {
  const fields: Field[] = [{ label: stepLabel, value: `${state.step}/${state.totalSteps}`, unit: "", weight: 9 }];
  const add = (weight: number, label: string, unit: string, value: number | undefined, text: (v: number) => string) => {
    if (value === undefined) return;
    fields.push({ label, value: text(value), unit, weight, alarming: !Number.isFinite(value) && label !== "" });
  };
  if (state.phase) fields.unshift({ label: "", value: state.phase, unit: "", weight: 4 });
  add(8, "loss", "", state.loss, formatLoss);
  add(5, "val", "", state.validationLoss, formatLoss);
  add(3, "lr", "", state.learningRate, (rate) => rate === 0 ? "0" : rate.toExponential(2));
  add(2, "norm", "", state.gradNorm, (norm) => norm.toPrecision(3));
  add(7, "", "tok/s", state.tokensPerSecond, formatCount);
  add(6, "", "left", state.secondsLeft, formatDuration);
  add(1, "", "", state.memory, formatBytes);
  return fields;
}

/** The fields that fit, in their order: the heaviest first come, first served, one that fails keeps lighter ones out. */
function fitting(fields: readonly Field[], room: number): Field[] {
  const kept = new Set<Field>();
  let used = 0;
  for (const field of [...fields].sort((a, b) => b.weight - a.weight)) {
    const needed = plain(field).length + (kept.size > 0 ? SEPARATOR.length : 0);
    if (used + needed > room) break;
    used += needed;
    kept.add(field);
  }
  return fields.filter((field) => kept.has(field));
}

const style = (code: number, text: string) => `\x1b[${code}m${text}\x1b[0m`;
const DIM = 2, RED = 31, GREEN = 32, BOLD = 1;

function bar(fraction: number, width: number, color: boolean): string {
  const halves = Math.round(Math.max(0, Math.min(1, fraction)) * width * 2);
  const done = "━".repeat(halves >> 1) + (halves % 2 ? "╸" : "");
  const rest = "━".repeat(width - Math.ceil(halves / 2));
  // Without colour the rest must look different by itself.
  return color ? style(GREEN, done) + style(DIM, rest) : done + "─".repeat(rest.length);
}

/**
 * One line of at most `columns` characters. What does not fit is left out, the least important first; what is left over
 * goes to a progress bar.
 *
 * @example
 * ```ts
 * import { renderStatus } from "./display.ts";
 * console.assert(renderStatus({ step: 5, totalSteps: 10, loss: 2 }, 24) === "5/10  loss 2.0000");
 * ```
 */
export function renderStatus(state: TrainingStatus, columns: number, options: { color?: boolean } = {}): string {
  const { color = false } = options;
  const width = Number.isFinite(columns) ? Math.max(1, Math.floor(columns)) : 80;
  const fields = fieldsOf(state, width < 30 ? "" : "step");
  const barRoom = width >= 40 ? MIN_BAR + SEPARATOR.length + 5 : 0; // the bar and " 100%"
  const kept = fitting(fields, width - barRoom);
  if (kept.length === 0) return `${state.step}/${state.totalSteps}`.slice(0, width);
  const paint = (field: Field) => {
    if (!color) return plain(field);
    const value = field.alarming
      ? style(RED, field.value)
      : field.label === "loss"
      ? style(BOLD, field.value)
      : field.value;
    return [field.label && style(DIM, field.label), value, field.unit && style(DIM, field.unit)].filter(Boolean).join(
      " ",
    );
  };
  const text = kept.map(paint).join(SEPARATOR);
  if (barRoom === 0) return text;
  const used = kept.map(plain).join(SEPARATOR).length;
  const fraction = state.totalSteps > 0 ? state.step / state.totalSteps : 0;
  const percent = `${Math.floor(100 * Math.max(0, Math.min(1, fraction)))}%`.padStart(4);
  const barWidth = Math.min(MAX_BAR, width - used - SEPARATOR.length - percent.length - 1);
  return `${bar(fraction, barWidth, color)} ${percent}${SEPARATOR}${text}`;
}

/** The same fields, all of them, for logs and pipes. */
export function renderPlainStatus(state: TrainingStatus): string {
  return fieldsOf(state).map(plain).join(SEPARATOR);
}

/** Where text goes. */
export interface DisplayOutput {
  write(text: string): void;
  /** Resolves when all that was written is out. @default nothing is ever under way */
  flushed?(): Promise<void>;
  readonly isTerminal: boolean;
  columns(): number;
}

export interface DisplayOptions {
  /** Standard output carries JSON lines only. @default {false} */
  readonly json?: boolean;
  /** For people. @default standard output, or standard error with `json` */
  readonly output?: DisplayOutput;
  /** For JSON lines. @default standard output */
  readonly jsonOutput?: Pick<DisplayOutput, "write" | "flushed">;
  /** @default true on a terminal, unless NO_COLOR is set */
  readonly color?: boolean;
  /** Least time between two plain lines; 0 writes every step. @default {5} */
  readonly everySeconds?: number;
  /** Milliseconds, monotonic. @default {performance.now} */
  readonly now?: () => number;
}

/** Characters that wait for a reader who does not read; what is said beyond them is not shown, and is in the run's files. */
const mostWaiting = 32 << 20;

/**
 * A stream of this process. A reader that has gone away is no reason to stop training: its text is dropped. Nor is one that
 * stands still (a pager, a terminal on hold, a broken connection): its text waits, and this process goes on.
 */
function streamOutput(stream: typeof Deno.stdout | typeof Deno.stderr): DisplayOutput {
  const encoder = new TextEncoder();
  let waiting = "", writing: Promise<void> | undefined;
  const drain = async () => {
    while (waiting !== "") {
      const bytes = encoder.encode(waiting);
      waiting = "";
      try {
        for (let written = 0; written < bytes.length;) written += await stream.write(bytes.subarray(written));
      } catch {
        // nobody reads any more, or the terminal is gone
      }
    }
    writing = undefined;
  };
  return {
    isTerminal: stream.isTerminal(),
    columns() {
      try {
        return Deno.consoleSize().columns || 80; // 0 in some pseudo-terminals
      } catch {
        return 80; // not a terminal
      }
    },
    write(text) {
      if (waiting.length + text.length > mostWaiting) return;
      waiting += text;
      writing ??= drain();
    },
    flushed: () => writing ?? Promise.resolve(),
  };
}

const CLEAR_LINE = "\r\x1b[2K";
const REDRAW_MILLISECONDS = 100;
/** Steps that the time left is estimated from. */
const PACE_WINDOW = 50;

/**
 * @example
 * ```ts
 * import { Display } from "./display.ts";
 * let shown = "";
 * const output = { isTerminal: false, columns: () => 80, write: (text: string) => void (shown += text) };
 * using display = new Display({ output, everySeconds: 0 });
 * display.update({ step: 1, totalSteps: 2, loss: 2 });
 * console.assert(shown === "step 1/2  loss 2.0000\n");
 * ```
 */
export class Display implements Disposable {
  readonly #output: DisplayOutput;
  readonly #json: Pick<DisplayOutput, "write" | "flushed"> | undefined;
  readonly #color: boolean;
  readonly #every: number;
  readonly #now: () => number;
  readonly #pace: { step: number; at: number }[] = [];
  #shown: TrainingStatus | undefined;
  #lastWritten: number;
  #lastWrittenStep = -1;

  constructor(options: DisplayOptions = {}) {
    const { json = false, everySeconds = 5 } = options;
    this.#output = options.output ?? streamOutput(json ? Deno.stderr : Deno.stdout);
    this.#json = json ? options.jsonOutput ?? streamOutput(Deno.stdout) : undefined;
    this.#color = options.color ?? (this.#output.isTerminal && !Deno.noColor);
    this.#every = everySeconds * 1000;
    this.#now = options.now ?? (() => performance.now());
    // In a log, what a run is busy with before its first step is news only where it takes long.
    this.#lastWritten = this.#output.isTerminal ? -Infinity : this.#now();
  }

  /** True where text may carry colours. */
  get color(): boolean {
    return this.#color;
  }

  /** Columns to draw in. */
  get columns(): number {
    return this.#output.isTerminal ? this.#output.columns() : 80;
  }

  /** Shows where the run stands. The first and the last step are always shown, others as often as is useful. */
  update(state: TrainingStatus): void {
    const now = this.#now(), { step, phase } = state;
    const status = { ...state, secondsLeft: state.secondsLeft ?? this.#secondsLeft(state, now) };
    // A phase comes right after the step that it follows, and may be all there is to see for long.
    const entered = this.#output.isTerminal && phase !== undefined && phase !== this.#shown?.phase;
    const due = phase === undefined && step !== this.#lastWrittenStep &&
      (this.#lastWrittenStep < 0 || step >= state.totalSteps);
    this.#shown = status;
    const pause = this.#output.isTerminal ? REDRAW_MILLISECONDS : this.#every;
    if (now - this.#lastWritten < pause && !due && !entered) return;
    this.#lastWritten = now;
    if (phase === undefined) this.#lastWrittenStep = step;
    if (this.#output.isTerminal) this.#draw();
    else this.#output.write(renderPlainStatus(status) + "\n");
  }

  /** Prints lines for people above the live line. */
  message(text: string): void {
    this.#output.write(this.#clear() + text + "\n");
    this.#draw();
  }

  /** Prints one JSON line for programs, where they were promised any. */
  record(entry: Readonly<Record<string, unknown>>): void {
    this.#json?.write(JSON.stringify(entry) + "\n");
  }

  /** Leaves the live line in the terminal's history, without what is no longer being done; without a step, no line. */
  [Symbol.dispose](): void {
    if (this.#output.isTerminal && this.#shown !== undefined) {
      this.#shown = { ...this.#shown, phase: undefined };
      if (this.#lastWrittenStep < 0) this.#output.write(CLEAR_LINE);
      else {
        this.#draw();
        this.#output.write("\n");
      }
    }
    this.#shown = undefined;
  }

  /** Resolves when all that was shown is out. */
  async flushed(): Promise<void> {
    await Promise.all([this.#output.flushed?.(), this.#json?.flushed?.()]);
  }

  #clear(): string {
    return this.#output.isTerminal && this.#shown !== undefined ? CLEAR_LINE : "";
  }

  #draw(): void {
    if (!this.#output.isTerminal || this.#shown === undefined) return;
    // One column short: a full line makes some terminals wrap, and the next redraw would leave it standing.
    const columns = Math.max(1, this.#output.columns() - 1);
    this.#output.write(CLEAR_LINE + renderStatus(this.#shown, columns, { color: this.#color }));
  }

  #secondsLeft(state: TrainingStatus, now: number): number | undefined {
    const pace = this.#pace;
    // A run that goes on from before an accident: the accident's time says nothing of steps to come.
    if (pace.length > 0 && state.step < pace.at(-1)!.step) pace.length = 0;
    // Only steps tell: starting takes what it takes once.
    if (state.phase === undefined && (pace.length === 0 || pace.at(-1)!.step < state.step)) {
      pace.push({ step: state.step, at: now });
    }
    if (pace.length > PACE_WINDOW) pace.shift();
    const [first, last] = [pace[0], pace.at(-1)!];
    if (!first || !last || last.step === first.step) return undefined;
    return Math.max(0, (state.totalSteps - state.step) * (last.at - first.at) / (last.step - first.step) / 1000);
  }
}
