/** Adam's second beta rising with the step count: InternEvo's `Beta2Scheduler`. */

export interface Beta2Options {
  /** The least value, held as long as `1 - n^-c` is below it. */
  readonly initBeta2: number;
  /** The exponent; 0 or below keeps beta2 constant. @default {0.8} */
  readonly c?: number;
  /** Steps already taken; -1 counts as 0. @default {-1} */
  readonly curIter?: number;
  /** What the optimizer was built with (`adam.adam_beta2`), used until the first step. @default {initBeta2} */
  readonly optimizerBeta2?: number;
}

export interface Beta2State {
  cur_iter: number;
  beta2: number;
}

/**
 * `beta2 = max(initBeta2, 1 - n^-c)` after step n, `initBeta2` where c is 0 or below.
 *
 * Unlike InternEvo's it is part of the checkpoint, so that a resumed run goes on with the beta2 it had.
 *
 * @example
 * ```ts
 * import { Beta2Scheduler } from "./beta2.ts";
 * const schedule = new Beta2Scheduler({ initBeta2: 0.5, c: 1 });
 * for (let i = 0; i < 4; i++) schedule.step();
 * console.assert(schedule.beta2 === 0.75);
 * ```
 */
export class Beta2Scheduler {
  readonly initBeta2: number;
  readonly c: number;
  #curIter: number;
  #beta2: number;

  constructor(options: Beta2Options) {
    const { initBeta2, c = 0.8, curIter = -1, optimizerBeta2 = initBeta2 } = options;
    for (const [name, value] of [["init_beta2", initBeta2], ["adam_beta2", optimizerBeta2]] as const) {
      if (!(value >= 0 && value < 1)) {
        throw new RangeError(
          `Cannot build the beta2 schedule: ${name} must be at least 0 and below 1, found ${value}`,
        );
      }
    }
    if (!Number.isFinite(c)) {
      throw new RangeError(`Cannot build the beta2 schedule: c must be a finite number, found ${c}`);
    }
    requireIteration(curIter, -1);
    this.initBeta2 = initBeta2;
    this.c = c;
    this.#curIter = curIter === -1 ? 0 : curIter;
    this.#beta2 = optimizerBeta2;
  }

  /** The value for the next optimizer step. */
  get beta2(): number {
    return this.#beta2;
  }

  /** Successful optimizer steps so far. */
  get curIter(): number {
    return this.#curIter;
  }

  /** Called after each successful optimizer step; `curIter` overrides the count. */
  step(curIter: number = this.#curIter + 1): void {
    requireIteration(curIter, 0);
    this.#curIter = curIter;
    this.#beta2 = this.#after(curIter);
  }

  /** At iteration 0 the power is infinite, so the maximum is initBeta2. */
  #after(curIter: number): number {
    return this.c <= 0 ? this.initBeta2 : Math.max(this.initBeta2, 1 - Math.pow(curIter, -this.c));
  }

  stateDict(): Beta2State {
    return { cur_iter: this.#curIter, beta2: this.#beta2 };
  }

  /** Takes the count from `state`; the shape stays this schedule's own, so that a changed run record is obeyed. */
  loadStateDict(state: Beta2State): void {
    if (!Number.isInteger(state?.cur_iter) || state.cur_iter < 0 || !(state.beta2 >= 0 && state.beta2 < 1)) {
      throw new TypeError(
        `Cannot load the beta2 schedule: cur_iter must be a count and beta2 below 1, found ${JSON.stringify(state)}`,
      );
    }
    this.#curIter = state.cur_iter;
    if (state.cur_iter > 0) this.#beta2 = this.#after(state.cur_iter);
  }
}

function requireIteration(value: number, least: number): void {
  if (!Number.isInteger(value) || value < least) {
    throw new RangeError(
      `Cannot set the beta2 schedule: cur_iter must be a whole number of at least ${least}, found ${value}`,
    );
  }
}
