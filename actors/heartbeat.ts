/** Signs of life of ranks, as the supervisor hears of them, and for how long there may be none. */
import type { ResolvedConfig } from "../src/config/mod.ts";

/** What a communicator says of its rank. */
export interface Said {
  /** How often the progress word has changed. */
  readonly changes: number;
  readonly phase: string;
  readonly step: number;
}

/** The last sign of life of a rank, and the last change of its progress word. */
export interface Beat extends Said {
  readonly firstMs: number;
  readonly atMs: number;
  readonly changedAtMs: number;
}

const second = 1000;

/** @param before the rank's last one, if it was heard of */
export function heard(before: Beat | undefined, { changes, phase, step }: Said, now: number): Beat {
  const changedAtMs = before?.changes === changes ? before.changedAtMs : now;
  return { changes, phase, step, firstMs: before?.firstMs ?? now, atMs: now, changedAtMs };
}

/** As if so much time had not passed: the supervisor was stopped, or starved, and what ranks said is still to be read. */
export const forgiven = (beat: Beat, pausedMs: number): Beat => ({
  ...beat,
  firstMs: beat.firstMs + pausedMs,
  atMs: beat.atMs + pausedMs,
  changedAtMs: beat.changedAtMs + pausedMs,
});

/** Phases whose time depends on the disk and the driver too: they may take so many times `step_timeout_s`. */
const patience: Readonly<Record<string, number>> = { start: 10, initialise: 10, save: 10 };

/**
 * Why a rank must be taken for dead, if it must.
 *
 * @param beat absent for one that was never heard of
 * @param since when the first of all ranks was first heard of
 */
export function silence(
  beat: Beat | undefined,
  since: number,
  { step_timeout_s, silence_timeout_s }: ResolvedConfig["runtime"],
  now: number,
): string | undefined {
  if (!beat) {
    // Starting may take long, but not much longer than it takes the others.
    if (now - since <= silence_timeout_s * second) return undefined;
    return `was not heard of for ${Math.round((now - since) / second)} s after others had started, and was killed`;
  }
  const quiet = now - beat.atMs, stuck = now - beat.changedAtMs;
  const limit = step_timeout_s * (patience[beat.phase] ?? 1);
  if (quiet > silence_timeout_s * second) {
    return `was not heard of for ${Math.round(quiet / second)} s, last at "${beat.phase}" after step ${beat.step}, ` +
      "and was killed";
  }
  if (limit > 0 && stuck > limit * second) {
    return `was at "${beat.phase}" after step ${beat.step} for ${Math.round(stuck / second)} s, longer than ` +
      `runtime.step_timeout_s: ${step_timeout_s} allows (${limit} s), and was killed`;
  }
}
