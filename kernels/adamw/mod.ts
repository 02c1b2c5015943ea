/** AdamW in one pass over parameters, gradients and both moments. Parameters and moments are `f32` whatever the model is. */
import type { FloatType, HalfType } from "../host.ts";
import { type Kernel, leastBytes, type Operand } from "../kernel.ts";
import { elementwisePass } from "../elementwise/wgsl.ts";
import type { Storage } from "../storage.ts";
import { adamwReference } from "./reference.ts";

/** What varies from step to step. */
export interface AdamwScalars {
  readonly lr: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  /** Decoupled: parameters shrink by lr * weightDecay a step. */
  readonly weightDecay: number;
  /** Steps taken with this one, from 1. */
  readonly step: number;
  /** Multiplies gradients first: unscaling and clipping. @default {1} */
  readonly gradientScale?: number;
}

/**
 * The `scalars` operand: [lr, beta1, beta2, eps, weightDecay, 1 - beta1^step, 1 - beta2^step, gradientScale].
 *
 * The corrections are of the betas as the device has them, rounded to `f32`: 1 - 0.999 is off by 1e-5 there, and with
 * the correction of the exact beta that error would not cancel in the first steps.
 *
 * @example
 * ```ts
 * import { adamwScalars } from "./mod.ts";
 * const scalars = adamwScalars({ lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.01, step: 1 });
 * console.assert(scalars.length === 8 && scalars[7] === 1);
 * ```
 */
export function adamwScalars(options: AdamwScalars): Float32Array<ArrayBuffer> {
  const { lr, beta1, beta2, eps, weightDecay, step, gradientScale = 1 } = options;
  if (!Number.isInteger(step) || step < 1) throw new RangeError(`Cannot step AdamW: step counts from 1, got ${step}`);
  const correction = (beta: number) => 1 - Math.fround(beta) ** step;
  return Float32Array.of(lr, beta1, beta2, eps, weightDecay, correction(beta1), correction(beta2), gradientScale);
}

export interface AdamwOptions {
  readonly length: number;
  /** @default {"f32"} */
  readonly gradientType?: FloatType;
  /** Type that the model computes on: the step ends by writing the new parameters in it too. @default none */
  readonly modelType?: HalfType;
}

/**
 * Operands parameters (update), gradients (read), firstMoment (update), secondMoment (update), scalars f32[8] (read,
 * from `adamwScalars`) and, with `modelType`, model (write), the parameters rounded to it:
 *
 * ```text
 * g = gradientScale gradients
 * m = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g²
 * p = (1 - lr weightDecay) p - lr / biasCorrection1 * m / (√v / √biasCorrection2 + eps)          model = p
 * ```
 */
export function adamw({ length, gradientType = "f32", modelType }: AdamwOptions): Kernel {
  const operands: Operand[] = [
    { name: "parameters", type: "f32", length, access: "update" },
    { name: "gradients", type: gradientType, length, access: "read" },
    { name: "firstMoment", type: "f32", length, access: "update" },
    { name: "secondMoment", type: "f32", length, access: "update" },
    { name: "scalars", type: "f32", length: 8, access: "read" },
    ...(modelType ? [{ name: "model", type: modelType, length, access: "write" } as const] : []),
  ];
  return {
    name: "adamw",
    operands,
    cost: { flops: 14 * length, bytes: leastBytes(operands) },
    reference: ([p, g, m, v, scalars, model]) => adamwReference(p, g, m, v, scalars, model),
    passes: (traits) => [elementwisePass(traits, operands, body(modelType !== undefined), ["scalars"])],
  };
}

const body = (copies: boolean) => ({ load, store }: Storage) =>
  `let first = ${load("scalars", "0u")}; // lr, beta1, beta2, eps
  let second = ${load("scalars", "1u")}; // weightDecay, 1 - beta1^step, 1 - beta2^step, gradientScale
  let g = ${load("gradients", "i")} * second.w;
  let m = first.y * ${load("firstMoment", "i")} + (1.0 - first.y) * g;
  let v = first.z * ${load("secondMoment", "i")} + (1.0 - first.z) * g * g;
  firstMoment[i] = m;
  secondMoment[i] = v;
  let denominator = sqrt(v) / sqrt(second.z) + first.w;
  ${copies ? "let p" : "parameters[i]"} = ` +
  `${load("parameters", "i")} * (1.0 - first.x * second.x) - first.x / second.y * (m / denominator);` +
  (copies ? `\n  parameters[i] = p;\n  ${store("model", "i", "p")}` : "");
