/** Time as the runtime sees it. */
import type { Cancel } from "./ref.ts";

export interface Clock {
  /** Milliseconds since the Unix epoch; never steps back. */
  now(): number;
  /** Calls once, `milliseconds` from now. A `background` timer does not keep a finished program alive. */
  after(milliseconds: number, run: () => void, background?: boolean): Cancel;
}

export function realClock(): Clock {
  return {
    now: () => performance.timeOrigin + performance.now(),
    after(milliseconds, run, background = false) {
      // setTimeout takes 31 bits; a longer wait would fire at once.
      const timer = setTimeout(run, Math.min(milliseconds, 2 ** 31 - 1));
      if (background) Deno.unrefTimer(timer);
      return () => clearTimeout(timer);
    },
  };
}

/** A clock that stands still until it is moved. */
export interface TestClock extends Clock {
  /** Moves on, running what falls due: by time, then in the order it was set. */
  advance(milliseconds: number): void;
  /** When the next timer falls due. */
  nextDue(): number | undefined;
}

export function testClock(startMilliseconds = 0): TestClock {
  let now = startMilliseconds;
  let timers: { due: number; run: () => void }[] = [];
  const next = () =>
    timers.reduce<(typeof timers)[0] | undefined>((a, b) => a === undefined || b.due < a.due ? b : a, undefined);
  return {
    now: () => now,
    after(milliseconds, run) {
      const timer = { due: now + milliseconds, run };
      timers.push(timer);
      return () => timers = timers.filter((other) => other !== timer);
    },
    advance(milliseconds) {
      const end = now + milliseconds;
      for (let timer = next(); timer !== undefined && timer.due <= end; timer = next()) {
        const due = timer;
        timers = timers.filter((other) => other !== due);
        now = Math.max(now, due.due);
        due.run();
      }
      now = end;
    },
    nextDue: () => next()?.due,
  };
}
