/** What `train --profiling` leaves of a rank: a profile of its third step, and a trace of the five after it. */
import type { Backend } from "../src/backend/backend.ts";
import type { Batch } from "../src/data/mod.ts";
import type { FlightRecord, FlightRecorder } from "../src/observe/flight_recorder.ts";
import { recordedSpans, TraceWriter } from "../src/observe/trace.ts";
import { profileStep } from "../src/train/profile.ts";
import type { Session, StepReport } from "../src/train/session.ts";
import { modelTypes } from "../src/train/types.ts";

/** Steps of this start that are looked at: what came before warmed up. */
const profiledStep = 2, tracedSteps = { first: 3, last: 7 };

export interface ProfilingOptions {
  readonly session: Session;
  readonly backend: Backend;
  readonly rank: number;
  /** Where the files go. */
  readonly folder: string;
  /** What was recorded since, for the trace: collectives, as the communicator notes them. */
  readonly recorded?: FlightRecorder["since"] | undefined;
  /** Told for people where the files are, or why there are none. */
  readonly tell: (text: string) => void;
}

interface Trace {
  readonly writer: TraceWriter;
  /** What was recorded meanwhile, up to record `next`. */
  readonly records: FlightRecord[];
  next: number;
}

export class Profiling {
  readonly #options: ProfilingOptions;
  #steps = 0;
  #trace: Trace | undefined;

  constructor(options: ProfilingOptions) {
    this.#options = options;
  }

  /** Trains on one batch, and looks at it where it is time to. */
  async step(batch: Batch): Promise<StepReport> {
    const number = this.#steps++;
    if (number === profiledStep) return await this.#profiled(batch);
    if (number < tracedSteps.first || number > tracedSteps.last) return await this.#options.session.step(batch);
    const report = await this.#traced(batch);
    if (number === tracedSteps.last) this.end();
    return report;
  }

  /** Closes the trace, of as many steps as it has, and says where it is; or why nothing is left. */
  end(): void {
    const { session, tell } = this.#options, trace = this.#trace;
    if (this.#steps <= profiledStep) {
      tell(
        `--profiling: nothing to look at, as the run ended before step ${
          profiledStep + 1
        } of this start; more steps do`,
      );
    }
    if (!trace) return;
    this.#trace = undefined;
    for (const { name, begin, end } of recordedSpans(trace.records)) {
      trace.writer.complete(name, begin, end, { lane: "communicator" });
    }
    session.trainer.onSpan = undefined;
    trace.writer[Symbol.dispose]();
    const count = Math.min(this.#steps - 1, tracedSteps.last) - tracedSteps.first + 1;
    tell(`Trace of ${count} step${count === 1 ? "" : "s"}, for chrome://tracing: ${this.#tracePath}`);
  }

  get #tracePath(): string {
    return `${this.#options.folder}/steps_rank${this.#options.rank}.json`;
  }

  async #traced(batch: Batch): Promise<StepReport> {
    const { session, rank, recorded } = this.#options;
    const trace = this.#trace ??= {
      writer: new TraceWriter(this.#tracePath, { rank }),
      records: [],
      next: recorded?.(Infinity).next ?? 0,
    };
    const { writer, records } = trace, began = performance.now();
    session.trainer.onSpan = (...span) => writer.complete(...span);
    const report = await session.step(batch);
    writer.complete(`step ${session.trainer.stepCount}`, began, performance.now(), { lane: "steps" });
    const kept = recorded?.(trace.next) ?? { records: [], next: 0 };
    records.push(...kept.records);
    trace.next = kept.next;
    return report;
  }

  async #profiled(batch: Batch): Promise<StepReport> {
    const { session, backend, rank, folder, tell } = this.#options;
    const { model: type, split = false } = modelTypes(session.config);
    const { profile, result } = await profileStep(backend, () => session.step(batch), { rank, type, split });
    if (profile === undefined) {
      tell(`--profiling: ${backend.traits.description} has no timestamps, so no kernel can be timed; left out`);
      return result;
    }
    const path = `${folder}/profile_rank${rank}`;
    await Deno.writeTextFile(`${path}.txt`, profile.table);
    await Deno.writeTextFile(`${path}_trace.json`, profile.trace);
    tell(`Profile of step ${session.trainer.stepCount}: ${path}.txt, and for chrome://tracing ${path}_trace.json`);
    return result;
  }
}
