/** AdamW on the host: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019. */
import type { HostArray } from "../kernel.ts";

/** One step on each element. `scalars` as in `AdamwScalars`; `model` takes the new parameters, where there is one. */
export function adamwReference(
  parameters: HostArray,
  gradients: HostArray,
  firstMoment: HostArray,
  secondMoment: HostArray,
  scalars: HostArray,
  model?: HostArray,
): void {
  const [lr, beta1, beta2, eps, weightDecay, biasCorrection1, biasCorrection2, gradientScale] = scalars;
  for (let i = 0; i < parameters.length; i++) {
    const g = gradients[i] * gradientScale;
    const m = beta1 * firstMoment[i] + (1 - beta1) * g;
    const v = beta2 * secondMoment[i] + (1 - beta2) * g * g;
    const denominator = Math.sqrt(v) / Math.sqrt(biasCorrection2) + eps;
    parameters[i] = parameters[i] * (1 - lr * weightDecay) - (lr / biasCorrection1) * (m / denominator);
    if (model) model[i] = parameters[i];
    firstMoment[i] = m;
    secondMoment[i] = v;
  }
}
