/** Who runs next: one queue, first in first out; each turn handles one message of one actor. */
import { type Clock, realClock, type TestClock, testClock } from "./clock.ts";

/** Something whose promise is being awaited. */
export interface Busy {
  readonly name: string;
  /** How many of its waits are on other actors or timers; 0 means that it waits for the world outside. */
  readonly waits: number;
}

export interface Scheduler {
  readonly clock: Clock;
  post(turn: () => void): void;
  readonly busy: Set<Busy>;
}

/** Turns run by themselves, yielding to input and output after each batch. */
export function realScheduler(clock: Clock = realClock()): Scheduler {
  const turns: (() => void)[] = [];
  let pumping = false;
  const pump = () => {
    try {
      for (let n = 0; n < 256 && turns.length > 0; n++) turns.shift()!();
    } finally {
      pumping = turns.length > 0;
      if (pumping) setImmediate(pump);
    }
  };
  return {
    clock,
    busy: new Set(),
    post(turn) {
      turns.push(turn);
      if (pumping) return;
      pumping = true;
      queueMicrotask(pump);
    },
  };
}

/** Turns run only when told to, always in the same order. */
export interface TestScheduler extends Scheduler {
  readonly clock: TestClock;
  /** Runs until nothing is left to do at this moment; with a promise, returns what it resolves to. */
  settle(): Promise<void>;
  settle<T>(promise: Promise<T>): Promise<T>;
  /** Moves the clock, settling after each timer. */
  advance(milliseconds: number): Promise<void>;
}

const maxTurns = 100_000;
const maxOutsideMs = 300_000;

export function testScheduler(clock: TestClock = testClock()): TestScheduler {
  const turns: (() => void)[] = [];
  const busy = new Set<Busy>();

  async function idle(): Promise<void> {
    const began = performance.now();
    for (let n = 0;;) {
      for (; turns.length > 0; n++) {
        if (n >= maxTurns) {
          throw new Error(`Cannot settle: still busy after ${maxTurns} turns, actors answer each other forever`);
        }
        turns.shift()!();
      }
      await new Promise((resolve) => setImmediate(resolve)); // lets every promise and pending input move on
      if (turns.length > 0) continue;
      const outside = [...busy].find(({ waits }) => waits === 0);
      if (outside === undefined) return;
      if (performance.now() - began > maxOutsideMs) {
        throw new Error(
          `Cannot settle: "${outside.name}" has awaited something outside the runtime for ${maxOutsideMs} ms ` +
            `(a handler that asks must use context.ask)`,
        );
      }
    }
  }

  async function settle<T>(promise?: Promise<T>): Promise<T | void> {
    if (promise === undefined) return await idle();
    let done = false;
    promise.then(() => done = true, () => done = true);
    await idle();
    if (!done) throw new Error("Cannot settle: nothing is left to do, and the promise is still pending");
    return await promise;
  }

  return {
    clock,
    busy,
    post: (turn) => void turns.push(turn),
    settle: settle as TestScheduler["settle"],
    async advance(milliseconds) {
      const end = clock.now() + milliseconds;
      await idle();
      for (let due = clock.nextDue(); due !== undefined && due <= end; due = clock.nextDue()) {
        clock.advance(Math.max(0, due - clock.now()));
        await idle();
      }
      clock.advance(end - clock.now());
    },
  };
}
