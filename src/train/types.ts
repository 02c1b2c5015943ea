/** What a run record asks tensors to be stored as. */
import type { FloatType } from "../../kernels/host.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import type { ModelTypes } from "../graph/graph.ts";

const stored: Readonly<Record<ResolvedConfig["model"]["dtype"], FloatType>> = {
  float32: "f32",
  float16: "f16",
  bfloat16: "bf16",
};

/**
 * @example
 * ```ts
 * import { modelTypes } from "./types.ts";
 * const types = modelTypes({
 *   use_fp32_norm: true,
 *   output_tf32: false,
 *   model: { dtype: "bfloat16", residual_in_fp32: false, matmul_precision: "float32" },
 * });
 * console.assert(types.model === "bf16" && types.norm === "f32" && types.stream === "bf16");
 * ```
 */
export function modelTypes(
  { use_fp32_norm, output_tf32, model: { dtype, residual_in_fp32, matmul_precision } }:
    & Pick<ResolvedConfig, "use_fp32_norm" | "output_tf32">
    & { readonly model: Pick<ResolvedConfig["model"], "dtype" | "residual_in_fp32" | "matmul_precision"> },
): ModelTypes {
  const model = stored[dtype];
  return {
    model,
    norm: use_fp32_norm ? "f32" : model,
    stream: residual_in_fp32 ? "f32" : model,
    head: output_tf32 ? "f32" : model,
    split: matmul_precision === "split",
    packed: matmul_precision === "packed",
  };
}
