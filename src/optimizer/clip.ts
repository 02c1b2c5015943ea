/** What gradients are multiplied by in the update. */

/** Keeps the division finite where the norm is 0; the value is PyTorch's and InternEvo's. */
const EPSILON = 1e-6;

/**
 * Takes the loss scale off, and clips as `clip_grad_norm_` does: by `min(1, clipGradNorm / (gradNorm + 1e-6))`.
 *
 * @param gradNorm length of the gradients with the loss scale taken off
 * @param options `lossScale`: what the loss was multiplied by; `clipGradNorm`: 0 does not clip
 *
 * @example
 * ```ts
 * import { gradientScale } from "./clip.ts";
 * console.assert(gradientScale(0.5, { lossScale: 8, clipGradNorm: 1 }) === 0.125);
 * console.assert(Math.abs(gradientScale(4, { lossScale: 1, clipGradNorm: 1 }) - 0.25) < 1e-6);
 * ```
 */
export function gradientScale(
  gradNorm: number,
  { lossScale, clipGradNorm }: { readonly lossScale: number; readonly clipGradNorm: number },
): number {
  return (clipGradNorm > 0 ? Math.min(1, clipGradNorm / (gradNorm + EPSILON)) : 1) / lossScale;
}
