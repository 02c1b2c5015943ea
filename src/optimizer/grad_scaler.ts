/** The dynamic loss scale of half-precision training: InternEvo's `DynamicGradScaler`. */

/** The model's type. `float32` needs no scale: it is 1 and never changes. */
export type ScaledType = "float32" | "tf32" | "float16" | "bfloat16";

export interface GradScalerOptions {
  /** @default {"float16"} */
  readonly dtype?: ScaledType;
  /** @default {65536} */
  readonly initialScale?: number;
  /** @default {2} */
  readonly growthFactor?: number;
  /** @default {0.5} */
  readonly backoffFactor?: number;
  /** Updates without overflow before the scale grows; 0 never grows. @default {1000} */
  readonly growthInterval?: number;
  /** Lower bound; null or 0 is none. */
  readonly minScale?: number | null;
  /** Upper bound; null or 0 is none. */
  readonly maxScale?: number | null;
  /** Overflows before the scale shrinks. @default {2} */
  readonly hysteresis?: number;
  /** Told of settings that work but look unintended. @default {console.warn} */
  readonly warn?: (message: string) => void;
}

export interface GradScalerState {
  _scale: number;
  _growth_step: number;
  _hysteresis_step: number;
}

function refuse(name: string, need: string, value: unknown): never {
  throw new RangeError(`Cannot build the gradient scaler: ${name} must be ${need}, found ${value}`);
}

/**
 * Grows the scale after `growthInterval` updates without overflow and shrinks it once `hysteresis` overflows were seen.
 * The overflow count is not reset by a shrink, only by a growth: after the first shrink each further overflow shrinks
 * again. The scale is a `float32` number, as on the device.
 *
 * @throws {RangeError} on factors or bounds that cannot work.
 *
 * @example
 * ```ts
 * import { DynamicGradScaler } from "./grad_scaler.ts";
 * const scaler = new DynamicGradScaler();
 * scaler.update(true);
 * console.assert(scaler.scale === 65536);
 * scaler.update(true);
 * console.assert(scaler.scale === 32768);
 * ```
 */
export class DynamicGradScaler {
  readonly #fixed: boolean;
  readonly #growthFactor: number;
  readonly #backoffFactor: number;
  readonly #growthInterval: number;
  readonly #minScale: number;
  readonly #maxScale: number;
  readonly #hysteresis: number;
  #scale: number;
  #growthStep = 0;
  #hysteresisStep = 0;

  constructor(options: GradScalerOptions = {}) {
    const { dtype = "float16", initialScale = 65536, growthFactor = 2, backoffFactor = 0.5 } = options;
    const { growthInterval = 1000, hysteresis = 2, warn = (message: string) => console.warn(message) } = options;
    const minScale = options.minScale ?? 0;
    const maxScale = options.maxScale ?? 0;
    if (!(initialScale > 0 && initialScale < Infinity)) refuse("initial_scale", "above 0 and finite", initialScale);
    if (!(minScale >= 0)) refuse("min_scale", "above 0, or null for no bound", minScale);
    if (!(maxScale >= 0)) refuse("max_scale", "above 0, or null for no bound", maxScale);
    if (!(hysteresis >= 0)) refuse("hysteresis", "0 or above", hysteresis);
    if (!(growthInterval >= 0)) refuse("growth_interval", "0 or above", growthInterval);
    if (dtype === "float16") {
      if (!(growthFactor > 1)) refuse("growth_factor", "above 1 for float16", growthFactor);
      if (!(backoffFactor > 0 && backoffFactor < 1)) {
        refuse("backoff_factor", "above 0 and below 1 for float16", backoffFactor);
      }
    } else {
      if (!(growthFactor >= 1)) refuse("growth_factor", "1 or above", growthFactor);
      if (!(backoffFactor > 0 && backoffFactor <= 1)) refuse("backoff_factor", "above 0, at most 1", backoffFactor);
      this.#warnUnused(dtype, growthFactor, backoffFactor, warn);
    }
    this.#fixed = dtype === "float32" || dtype === "tf32";
    this.#scale = this.#fixed ? 1 : Math.fround(initialScale);
    this.#growthFactor = Math.fround(growthFactor);
    this.#backoffFactor = Math.fround(backoffFactor);
    this.#growthInterval = growthInterval;
    this.#minScale = Math.fround(minScale);
    this.#maxScale = Math.fround(maxScale);
    this.#hysteresis = hysteresis;
  }

  #warnUnused(dtype: string, growth: number, backoff: number, warn: (message: string) => void): void {
    // float32 keeps its scale at 1 whatever the factors, so the defaults deserve no word there.
    if (dtype !== "bfloat16") return;
    if (growth !== 1) {
      warn(`grad_scaler.growth_factor is ${growth} with ${dtype}, which needs no loss scale: 1 is usual`);
    }
    if (backoff !== 1) {
      warn(`grad_scaler.backoff_factor is ${backoff} with ${dtype}, which needs no loss scale: 1 is usual`);
    }
  }

  /** What the loss is multiplied by. */
  get scale(): number {
    return this.#scale;
  }

  /** 1 / scale, rounded to `float32`. */
  get inverseScale(): number {
    return Math.fround(1 / this.#scale);
  }

  get growthStep(): number {
    return this.#growthStep;
  }

  get hysteresisStep(): number {
    return this.#hysteresisStep;
  }

  /** Called once a step, with whether any gradient was infinite. */
  update(overflow: boolean): void {
    if (this.#fixed) return;
    if (overflow) {
      this.#hysteresisStep++;
      this.#growthStep = 0;
      if (this.#hysteresisStep >= this.#hysteresis) {
        this.#scale = Math.fround(this.#scale * this.#backoffFactor);
        if (this.#minScale > 0) this.#scale = Math.max(this.#scale, this.#minScale);
      }
      return;
    }
    this.#growthStep++;
    if (this.#growthStep === this.#growthInterval) {
      this.#growthStep = 0;
      this.#hysteresisStep = 0;
      this.#scale = Math.fround(this.#scale * this.#growthFactor);
      if (this.#maxScale > 0) this.#scale = Math.min(this.#scale, this.#maxScale);
    }
  }

  stateDict(): GradScalerState {
    return { _scale: this.#scale, _growth_step: this.#growthStep, _hysteresis_step: this.#hysteresisStep };
  }

  /** A `float32` run keeps its scale of 1 whatever a half-precision run stored. */
  loadStateDict(state: GradScalerState): void {
    if (!(state?._scale > 0) || !(state._growth_step >= 0) || !(state._hysteresis_step >= 0)) {
      throw new TypeError(
        `Cannot load the gradient scaler: _scale must be above 0 and the counts 0 or above, found ${
          JSON.stringify(state)
        }`,
      );
    }
    if (this.#fixed) return;
    this.#scale = Math.fround(state._scale);
    this.#growthStep = state._growth_step;
    this.#hysteresisStep = state._hysteresis_step;
  }
}
