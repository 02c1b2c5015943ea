/** Norms over the last dimension, with their gradients. Shapes, operand order and algorithms: see each function. */
export { rmsNormBackward, rmsNormForward, type RmsNormSizes, rmsNormWeightGradient } from "./rms_norm.ts";
export { layerNormBackward, layerNormForward, type LayerNormSizes, layerNormWeightGradient } from "./layer_norm.ts";
