/**
 * Linear warm-up, then one cosine down to `etaMin`: InternEvo's `FineTuneCosineAnnealingWarmupLR`.
 *
 * The cosine is evaluated in closed form. The chained form (each rate from the previous one) gives the same numbers to
 * about 1e-14, but starts wrong when the rate before it was 0 and drifts when a run is resumed.
 */

export interface LearningRateOptions {
  /** The peak rate (`adam.lr`). */
  readonly baseLearningRate: number;
  /** Optimizer steps of the whole schedule. */
  readonly totalSteps: number;
  /** Steps at rate 0 before the warm-up. @default {0} */
  readonly initSteps?: number;
  /** Warm-up steps as a fraction of `totalSteps`, rounded down. @default {0} */
  readonly warmupRatio?: number;
  /** The rate the cosine ends at. @default {0} */
  readonly etaMin?: number;
  /** The cosine starts `lastEpoch + 1` steps in; the warm-up is not moved. @default {-1} */
  readonly lastEpoch?: number;
}

/** InternEvo's `state_dict`, as far as it determines the rate, plus `cosine_peak`. */
export interface LearningRateState {
  base_lrs: number[];
  /** Steps taken, counted only until the cosine begins. */
  last_epoch: number;
  warmup_epochs: number;
  finished: boolean;
  after_scheduler_type: "CosineAnnealingLR";
  after_scheduler_dict: { base_lrs: number[]; last_epoch: number; eta_min: number; T_max: number };
  /** The rate that the cosine falls from; differs from `base_lrs[0]` after a resume with another base rate. */
  cosine_peak?: number;
}

function requireSteps(name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least) {
    throw new RangeError(
      `Cannot build the learning-rate schedule: ${name} must be a whole number of at least ${least}, found ${value}`,
    );
  }
}

function requireRate(name: string, value: number): void {
  if (!Number.isFinite(value) || value < 0) {
    throw new RangeError(
      `Cannot build the learning-rate schedule: ${name} must be a finite number, 0 or above, found ${value}`,
    );
  }
}

/** (1 + cos x) / 2, as a square so that it keeps its relative precision where it nears 0. */
function raisedCosine(x: number): number {
  return Math.cos(x / 2) ** 2;
}

/**
 * Holds the learning rate of the next step; `step()` is called after each *successful* optimizer step.
 *
 * @throws {RangeError} on values that no schedule can be made of, among them a warm-up that leaves the cosine no step.
 *
 * @example
 * ```ts
 * import { FineTuneCosineAnnealingWarmupLR } from "./learning_rate.ts";
 * const schedule = new FineTuneCosineAnnealingWarmupLR({
 *   baseLearningRate: 1e-4, totalSteps: 50_000, warmupRatio: 0.01, etaMin: 1e-5,
 * });
 * console.assert(schedule.learningRate === 1e-4 * (1 / 500));
 * for (let i = 0; i < 499; i++) schedule.step();
 * console.assert(schedule.learningRate === 1e-4);
 * ```
 */
export class FineTuneCosineAnnealingWarmupLR {
  readonly baseLearningRate: number;
  readonly totalSteps: number;
  readonly initSteps: number;
  readonly warmupSteps: number;
  readonly etaMin: number;
  readonly #cosineOffset: number;
  #cosinePeak: number;
  #steps = 0;

  constructor(options: LearningRateOptions) {
    const { baseLearningRate, totalSteps, initSteps = 0, warmupRatio = 0, etaMin = 0, lastEpoch = -1 } = options;
    requireRate("adam.lr", baseLearningRate);
    requireRate("eta_min", etaMin);
    requireSteps("total_steps", totalSteps, 1);
    requireSteps("init_steps", initSteps, 0);
    requireSteps("last_epoch", lastEpoch, -1);
    if (!(warmupRatio >= 0 && warmupRatio <= 1)) {
      throw new RangeError(
        `Cannot build the learning-rate schedule: warmup_ratio must be from 0 to 1, found ${warmupRatio}`,
      );
    }
    this.baseLearningRate = baseLearningRate;
    this.totalSteps = totalSteps;
    this.initSteps = initSteps;
    this.warmupSteps = Math.trunc(totalSteps * warmupRatio);
    this.etaMin = etaMin;
    this.#cosineOffset = lastEpoch + 1;
    this.#cosinePeak = baseLearningRate;
    if (this.cosineSteps < 1) {
      throw new RangeError(
        `Cannot build the learning-rate schedule: the cosine needs at least one step, found total_steps=${totalSteps}, ` +
          `init_steps=${initSteps}, warm-up steps=${this.warmupSteps}; lower init_steps or warmup_ratio`,
      );
    }
  }

  /** Steps from the peak to `etaMin`. */
  get cosineSteps(): number {
    return this.totalSteps - this.initSteps - this.warmupSteps;
  }

  /** Successful optimizer steps so far. */
  get steps(): number {
    return this.#steps;
  }

  /** The rate for the step that comes next. */
  get learningRate(): number {
    return this.at(this.#steps);
  }

  /** The rate after `steps` successful steps. Past `totalSteps` the cosine swings back up, as InternEvo's does. */
  at(steps: number): number {
    if (steps < this.initSteps) return 0;
    const warm = steps - this.initSteps;
    if (warm < this.warmupSteps) return this.baseLearningRate * ((warm + 1) / this.warmupSteps);
    const t = warm - this.warmupSteps + this.#cosineOffset;
    const factor = raisedCosine(Math.PI * (t % (2 * this.cosineSteps)) / this.cosineSteps);
    // Once past the first trough the chained form climbs towards the base rate, whatever peak it fell from.
    const peak = t > this.cosineSteps ? this.baseLearningRate : this.#cosinePeak;
    return this.etaMin + (peak - this.etaMin) * factor;
  }

  step(): void {
    this.#steps++;
  }

  stateDict(): LearningRateState {
    const cosineStart = this.initSteps + this.warmupSteps;
    const finished = this.#steps >= cosineStart;
    return {
      base_lrs: [this.baseLearningRate],
      last_epoch: Math.min(this.#steps, cosineStart),
      warmup_epochs: cosineStart,
      finished,
      after_scheduler_type: "CosineAnnealingLR",
      after_scheduler_dict: {
        base_lrs: [this.baseLearningRate],
        last_epoch: this.#cosineOffset + Math.max(0, this.#steps - cosineStart),
        eta_min: this.etaMin,
        T_max: this.cosineSteps,
      },
      cosine_peak: this.#cosinePeak,
    };
  }

  /**
   * Takes the position from `state`; the shape (steps, warm-up, `etaMin`, base rate) stays this schedule's own, so a run
   * record changed between two starts is obeyed. Where the base rate changed in mid-cosine, the current rate is
   * multiplied by new over old and the cosine goes on from there: a cosine with another peak, kept in the state.
   */
  loadStateDict(state: LearningRateState): void {
    const after = state?.after_scheduler_dict;
    const storedBase = state?.base_lrs?.[0];
    const position = after && state.finished
      ? state.warmup_epochs + after.last_epoch - this.#cosineOffset
      : state?.last_epoch;
    if (!Number.isInteger(position) || position < 0 || !Number.isFinite(storedBase)) {
      throw new TypeError(
        `Cannot load the learning-rate schedule: last_epoch and base_lrs must be numbers, found ${
          JSON.stringify(state)
        }`,
      );
    }
    this.#steps = position;
    this.#cosinePeak = state.cosine_peak ?? storedBase;
    if (storedBase === this.baseLearningRate) return;
    const t = after && state.finished ? after.last_epoch : 0;
    const factor = raisedCosine(Math.PI * t / (after?.T_max ?? 1));
    // Before the cosine, and at its foot where no peak can be read off, the new base rate simply holds.
    if (t <= 0 || t >= after.T_max || factor === 0 || storedBase === 0) {
      this.#cosinePeak = this.baseLearningRate;
      return;
    }
    const storedRate = after.eta_min + (this.#cosinePeak - after.eta_min) * factor;
    const scaled = storedRate * this.baseLearningRate / storedBase;
    this.#cosinePeak = this.etaMin + (scaled - this.etaMin) / factor;
  }
}
