/**
 * Values that depend on other fields. Each rule sees the whole record and what was written, if anything; it runs when
 * the value is first read, so the order of the rules does not matter.
 */
import { familyDefaults } from "./families.ts";
import { objectStorePrefix } from "./schema/ckpt.ts";
import type { ResolvedConfig } from "./schema/mod.ts";

/** Thrown by a rule when the field must be written after all; the message says when, and what would do. */
export class Needed extends Error {}

// deno-lint-ignore no-explicit-any -- `given` is a value that the field's own schema has accepted
type Rule = (config: ResolvedConfig, given: any) => unknown;

export interface DerivedValue {
  readonly value: Rule;
  /** The rule overrules what was written; this says why, when the two differ. */
  readonly overrules?: string;
}

const init = (config: ResolvedConfig) => familyDefaults(config.model_type).init;
const output = (config: ResolvedConfig) => config.model.use_scaled_init ? init(config).other : init(config).small;

const isMegaBlock = ({ model: { moe_type } }: ResolvedConfig) => moe_type.startsWith("MegaBlock");

/** Keeps what was written. */
const unless = (rule: (config: ResolvedConfig) => unknown): DerivedValue => ({
  value: (config, given) => given === undefined ? rule(config) : given,
});

/** A checkpoint setting that saving needs, and that is null without saving. */
const neededToSave = (what: string): DerivedValue => ({
  value: (config, given) => {
    if (!config.ckpt.enable_save_ckpt) return null;
    if (given !== undefined) return given;
    throw new Needed(`missing; saving checkpoints needs ${what}, or set ckpt.enable_save_ckpt to false`);
  },
});

export const derivedValues: Readonly<Record<string, DerivedValue>> = {
  "model.hidden_size": unless((c) => familyDefaults(c.model_type).hidden_size),
  "model.num_attention_heads": unless((c) => familyDefaults(c.model_type).num_attention_heads),
  "model.num_kv_attention_heads": unless((c) => c.model.num_attention_heads),
  "model.num_chunks": {
    value: (c, given) => c.parallel.pipeline.mode === "ZBV" ? 2 : given ?? 1,
    overrules: "schedule ZBV has 2 chunks",
  },
  "model.top_k": unless((c) => isMegaBlock(c) ? c.moe.top_k : 1),
  "model.moe_layer_kwargs": {
    value: (c, given) => ({
      ...(c.model.moe_type === "MegaBlock"
        ? { capacity_factor: c.moe.capacity_factor, drop_tokens: c.moe.drop_tokens }
        : {}),
      ...given,
    }),
  },
  "model.checkpoint": unless((c) => familyDefaults(c.model_type).checkpoint),
  "model.qk_interleaved": unless((c) => c.model.adapt_hf === null ? false : !c.model.adapt_hf),
  "model.use_swiglu": unless((c) => c.model_type !== "GEMMA"),
  "model.embedding_init_std": unless((c) => init(c).embedding),
  "model.attn_wqkv_init_std": unless((c) => init(c).wqkv),
  "model.attn_other_init_std": unless(output),
  "model.ffn_uplayer_init_std": unless((c) => init(c).uplayer),
  "model.ffn_other_init_std": unless(output),
  "model.out_head_init_std": unless((c) => init(c).head),

  "data.gradient_accumulation": unless((c) => c.data.micro_num),
  "data.packed_length": {
    value: (c) => c.data.seq_len * c.data.micro_bsz,
    overrules: "it is always seq_len * micro_bsz",
  },
  "data.batch_size": { value: (c) => c.data.micro_num, overrules: "it is always micro_num" },
  "data.valid_micro_num": unless((c) => c.data.micro_num),
  "data.diag_outlier_ratio": { value: (_, given) => Math.max(1, given ?? 1.1), overrules: "it cannot be below 1" },

  "lr_scheduler.total_steps": unless((c) => c.data.total_steps),
  "beta2_scheduler.init_beta2": unless((c) => c.adam.adam_beta2),
  "beta2_scheduler.c": unless((c) => c.adam.adam_beta2_c),

  "parallel.pipeline.schedule": unless((c) => {
    if (c.parallel.pipeline.mode !== "1F1B") return c.parallel.pipeline.mode.toLowerCase();
    return c.model.num_chunks > 1 ? "interleaved" : "1f1b";
  }),
  "parallel.sequence_parallel": {
    value: (c) => c.parallel.tensor.mode !== "mtp",
    overrules: "it follows from parallel.tensor.mode",
  },

  "ckpt.auto_resume": unless(({ ckpt }) => ckpt.load_given_ckpt === null ? true : !ckpt.load_given_ckpt),
  "ckpt.checkpoint_every": neededToSave("the number of steps between two, such as 100"),
  "ckpt.save_ckpt_folder": {
    value: (c, given) => neededToSave("a folder, such as local:checkpoints").value(c, given ?? undefined),
  },
  "ckpt.async_upload": {
    value: (c, given) => (given ?? false) && objectStorePrefix.test(c.ckpt.save_ckpt_folder ?? ""),
    overrules: "only folders in an object store are uploaded to",
  },
  "ckpt.async_upload_tmp_folder": {
    value: (c, given) => c.ckpt.async_upload ? given ?? "/dev/shm/internlm_tmp_ckpt/" : null,
  },
  "ckpt.oss_snapshot_freq": { value: (c, given) => c.ckpt.enable_save_ckpt ? given ?? null : null },
  "ckpt.snapshot_ckpt_folder": {
    value: (c, given) => c.ckpt.save_ckpt_folder === null ? null : given ?? `${c.ckpt.save_ckpt_folder}/snapshot`,
  },

  "runtime.bounds_checks": unless((c) => c.runtime.plugins.length > 0),
  "runtime.run_dir": unless((c) => `RUN/${c.JOB_NAME}`),
};
