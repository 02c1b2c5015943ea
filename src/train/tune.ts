/**
 * The tuner: where a run's kernels have several forms, it has each do the run's own work on the device at hand, checks what
 * it makes, and times it. A form that differs from the reference, or does not compile, is never chosen. What is found holds
 * for all kernels that ask the same question (`kernels/choices.ts`): of a kind, and alike in types and sizes.
 */
import type { Choices } from "../../kernels/choices.ts";
import type { Kernel } from "../../kernels/kernel.ts";
import type { Backend, CommandList } from "../backend/backend.ts";
import { settle } from "../graph/program.ts";
import { allowedError, type FoundKernel, KernelTrial, largestErrorOf } from "./kernel_trial.ts";

/** A form's best time of one dispatch, in seconds; or why it cannot be taken. */
export type Tried = { readonly seconds: number } | { readonly refused: string };

/** An answer to one question. */
export interface Found {
  readonly choice: string;
  /** All candidates, the shipped one first, as far as they were tried. */
  readonly tried: Readonly<Record<string, Tried>>;
}

/** What kernels ask, with the one on which candidates are tried. */
export interface Question {
  readonly question: string;
  readonly candidates: readonly string[];
  readonly kernel: Kernel;
  /** How much of a step hangs on it, in bytes that could have been moved instead. */
  readonly weight: number;
}

/** Operations that take about as long as moving a byte, on most devices. */
const flopsOfByte = 10;

/** All questions of a run's kernels that have more than one candidate, the weightiest first. */
export function questionsOf(kernels: readonly FoundKernel[], { traits }: Pick<Backend, "traits">): Question[] {
  const questions = new Map<string, Question>();
  for (const { kernel, calls } of kernels) {
    const cost = kernel.cost.bytes + kernel.cost.flops / flopsOfByte;
    const asked = new Map<string, readonly string[]>();
    kernel.passes({ ...traits, choices: { of: (question, candidates) => void asked.set(question, candidates) } });
    for (const [question, candidates] of asked) {
      const known = questions.get(question), weight = (known?.weight ?? 0) + calls * cost;
      // The largest kernel is asked: there it matters most.
      const largest = known && known.kernel.cost.flops >= kernel.cost.flops ? known.kernel : kernel;
      questions.set(question, { question, candidates, kernel: largest, weight });
    }
  }
  return [...questions.values()].sort((a, b) => b.weight - a.weight);
}

/** The kernel in one of its forms. */
function formOf(kernel: Kernel, question: string, choice: string): Kernel {
  const choices: Choices = { of: (asked) => asked === question ? choice : undefined };
  return { ...kernel, passes: (traits) => kernel.passes({ ...traits, choices }) };
}

/** Beyond this many operations the reference takes too long, and the shipped form's result is what others are held to. */
const mostCheckedFlops = 2e8;
/** A timing repeats a form until it lasts this long. */
const shortestTiming = 0.02;
const rounds = 3;
/** A form whose first run takes so many times as long as the best one's is not timed again. */
const hopeless = 4;
/** Another form than the shipped one must be faster by this, so that chance does not choose. */
const leastGain = 0.03;

/** Device time where it can be had, else the clock's, of `count` dispatches. */
async function timeOf(backend: Backend, list: CommandList, trial: KernelTrial): Promise<number> {
  if (backend.profile) {
    const timings = await backend.profile(() => backend.submit(list));
    return timings.reduce((sum, { seconds }) => sum + seconds, 0);
  }
  await trial.wait();
  const started = performance.now();
  backend.submit(list);
  await trial.wait();
  return (performance.now() - started) / 1000;
}

/** Tries all candidates of one question. */
async function answer({ question, candidates, kernel }: Question, backend: Backend): Promise<Found> {
  using trial = new KernelTrial(kernel, backend);
  const tried: Record<string, Tried> = {}, lists = new Map<string, { list: CommandList; count: number }>();
  let expected = kernel.cost.flops <= mostCheckedFlops ? trial.reference() : undefined;
  let fastest = Infinity;
  for (const name of candidates) {
    const form = formOf(kernel, question, name);
    try {
      const once = await trial.prepare(form), made = await trial.result(once);
      const error = expected === undefined ? 0 : largestErrorOf(made, expected);
      if (error > allowedError(kernel)) {
        tried[name] = { refused: `differs from the reference by ${error.toPrecision(3)}` };
        continue;
      }
      expected ??= made;
      const seconds = await timeOf(backend, once, trial);
      tried[name] = { seconds };
      fastest = Math.min(fastest, seconds);
      if (name !== candidates[0] && seconds > hopeless * fastest) continue;
      const count = Math.max(1, Math.min(64, Math.ceil(shortestTiming / Math.max(seconds, 1e-6))));
      lists.set(name, { list: await trial.prepare(form, count), count });
    } catch (error) {
      if (name === candidates[0]) throw error;
      tried[name] = { refused: (error as Error).message.split("\n")[0]! };
    }
  }
  // In turns, so that a device that slows down, or other work on it, meets all alike.
  for (let round = 0; round < rounds; round++) {
    for (const [name, { list, count }] of lists) {
      const seconds = await timeOf(backend, list, trial) / count,
        { seconds: best } = tried[name] as { seconds: number };
      tried[name] = { seconds: round === 0 ? seconds : Math.min(best, seconds) };
    }
  }
  const secondsOf = (name: string) => (tried[name] as { seconds: number }).seconds;
  const shipped = candidates[0]!, names = [...lists.keys()];
  if (!lists.has(shipped)) {
    throw new Error(`Cannot tune ${question}: the shipped form ${shipped} differs from the reference`);
  }
  const best = names.reduce((a, b) => secondsOf(b) < secondsOf(a) ? b : a);
  return { choice: secondsOf(best) <= secondsOf(shipped) * (1 - leastGain) ? best : shipped, tried };
}

export interface TuneOptions {
  readonly backend: Backend;
  /** Questions that are answered already. */
  readonly known?: (question: string) => boolean;
  /** No question is begun after so long; those left keep what is shipped. */
  readonly seconds: number;
  /** Told of every question that was answered, or could not be. */
  readonly onFound?: (progress: {
    readonly question: Question;
    readonly found: Found | undefined;
    /** Why there is no answer. */
    readonly problem?: string;
    readonly done: number;
    readonly of: number;
  }) => void;
}

/** @returns the answers, and how many questions the time was too short for */
export async function tune(
  kernels: readonly FoundKernel[],
  { backend, known = () => false, seconds, onFound }: TuneOptions,
): Promise<{ readonly found: ReadonlyMap<string, Found>; readonly left: number }> {
  const open = questionsOf(kernels, backend).filter(({ question }) => !known(question));
  const found = new Map<string, Found>(), started = performance.now();
  const late = () => (performance.now() - started) / 1000 >= seconds;
  let done = 0;
  for (const question of open) {
    if (late()) break;
    done++;
    try {
      const answered = await answer(question, backend);
      found.set(question.question, answered);
      onFound?.({ question, found: answered, done, of: open.length });
    } catch (error) {
      const problem = (error as Error).message.split("\n")[0]!;
      onFound?.({ question, found: undefined, problem, done, of: open.length });
      // A device that failed computes nothing that can be trusted: this throws what it reported.
      await settle(backend.read([]));
    }
  }
  return { found, left: open.length - done };
}
