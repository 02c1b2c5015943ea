/** Norms over the last dimension, with their gradients. Shapes, operand order and algorithms: see each function. */
export { rmsNormBackward, rmsNormForward, rmsNormWeightGradient } from "./rms_norm.ts";
export { layerNormBackward, layerNormForward, layerNormWeightGradient } from "./layer_norm.ts";
