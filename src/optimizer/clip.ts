/**
 * What the host decides between the read-back of the squared norms and the update: skip the step or not, and by how
 * much to multiply each group's gradients.
 */

/** Keeps the division finite where the norm is 0; the value is PyTorch's and InternEvo's. */
const EPSILON = 1e-6;

/**
 * `min(1, maxNorm / (norm + 1e-6))`, as `clip_grad_norm_` has it. A `maxNorm` of 0 does not clip.
 *
 * @example
 * ```ts
 * import { clipFactor } from "./clip.ts";
 * console.assert(clipFactor(0.5, 1) === 1);
 * console.assert(Math.abs(clipFactor(4, 1) - 0.25) < 1e-6);
 * ```
 */
export function clipFactor(norm: number, maxNorm: number): number {
  return maxNorm > 0 ? Math.min(1, maxNorm / (norm + EPSILON)) : 1;
}

export interface UnscaleAndClipOptions {
  /** Squared norm of each group's gradients over the whole world, still multiplied by `lossScale`². */
  readonly squaredNorms: readonly number[];
  /** What the loss was multiplied by. */
  readonly lossScale: number;
  /** 0 does not clip. */
  readonly clipGradNorm: number;
  /**
   * `group` clips each group by its own norm (InternEvo's first optimizer); `global` clips all by the norm over all
   * groups (its second, and what other frameworks do). @default {"global"}
   */
  readonly scope?: "group" | "global";
}

export interface UnscaledAndClipped {
  /** False where a gradient is infinite or not a number: the step must be skipped. */
  readonly finite: boolean;
  /** True where a gradient is infinite (or its square too large for `float32`): the loss scale should shrink. */
  readonly overflow: boolean;
  /** Norm of each group with the loss scale taken off, before clipping. */
  readonly norms: number[];
  /** Norm over all groups with the loss scale taken off. */
  readonly globalNorm: number;
  /** What each group's gradients are multiplied by: unscaling always, clipping where asked. 0 where not finite. */
  readonly factors: number[];
}

/**
 * @throws {RangeError} on a loss scale or a clip limit that cannot be used.
 *
 * @example
 * ```ts
 * import { unscaleAndClip } from "./clip.ts";
 * const { norms, factors } = unscaleAndClip({ squaredNorms: [64], lossScale: 4, clipGradNorm: 0 });
 * console.assert(norms[0] === 2 && factors[0] === 0.25);
 * ```
 */
export function unscaleAndClip(options: UnscaleAndClipOptions): UnscaledAndClipped {
  const { squaredNorms, lossScale, clipGradNorm, scope = "global" } = options;
  if (!(lossScale > 0)) {
    throw new RangeError(`Cannot unscale gradients: the loss scale must be above 0, found ${lossScale}`);
  }
  if (!(clipGradNorm >= 0)) {
    throw new RangeError(`Cannot clip gradients: clip_grad_norm must be 0 (off) or above, found ${clipGradNorm}`);
  }
  const norms = squaredNorms.map((squared) => Math.sqrt(squared) / lossScale);
  const globalNorm = Math.sqrt(squaredNorms.reduce((sum, squared) => sum + squared, 0)) / lossScale;
  const finite = Number.isFinite(globalNorm);
  return {
    finite,
    overflow: squaredNorms.some((squared) => squared === Infinity),
    norms,
    globalNorm,
    factors: norms.map((norm) =>
      finite ? clipFactor(scope === "global" ? globalNorm : norm, clipGradNorm) / lossScale : 0
    ),
  };
}
