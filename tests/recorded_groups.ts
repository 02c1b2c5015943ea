/** Layouts as `process_groups.json` records them, and the sizes that Troupe derives for them. */
import { type ParallelSizes, parallelSizes, resolveConfig, type ResolvedConfig } from "../src/config/mod.ts";

export interface RecordedLayout {
  readonly world: number;
  readonly parallel: Record<string, unknown> & { gqa?: boolean; weight?: number | { size?: number } };
  readonly num_experts?: number;
}

/** @throws {Error} for a layout that is refused */
export function sizesOf(
  { world, parallel, num_experts = 1 }: RecordedLayout,
): { config: ResolvedConfig; sizes: ParallelSizes; fsdp: boolean } {
  // The groups are made before a weight size without isp is refused, so that size is put in afterwards; and groups of
  // fully sharded ranks that are split by tensors too, which Troupe does not train.
  const { gqa: _, weight, zero1, ...rest } = parallel, fsdp = (zero1 as { fsdp?: boolean })?.fsdp ?? false;
  const sections = {
    ...rest,
    ...(zero1 === undefined ? {} : { zero1: fsdp ? { ...(zero1 as object), fsdp: false } : zero1 }),
  };
  const config = resolveConfig({
    ...(num_experts > 1 ? { model_type: "INTERNLM_MoE" } : {}),
    // Sizes that any number of ranks divides.
    model: {
      num_layers: 1024,
      num_experts,
      vocab_size: 2 ** 10 * 3 * 5 * 7,
      num_attention_heads: 960,
      num_kv_attention_heads: 960,
      hidden_size: 1920,
    },
    data: { seq_len: 960, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1 },
    ckpt: { enable_save_ckpt: false },
    parallel: sections,
  }, { worldSize: world, allowRefused: true });
  const size = typeof weight === "number" ? weight : weight?.size ?? 1;
  const withWeight = { ...config, parallel: { ...config.parallel, weight: { ...config.parallel.weight, size } } };
  return { config, sizes: parallelSizes(withWeight, world), fsdp };
}
