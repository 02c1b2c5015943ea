/**
 * The rules that bind fields to each other. Each is run by itself on the whole record; one that reads a field whose
 * value is already known to be wrong is passed over, so that nobody reads the same mistake twice.
 */
import { familyDefaults, knownModelTypes, typesWithExperts, workingModelTypes } from "./families.ts";
import { nearest } from "./nearest.ts";
import { parallelProblems } from "./parallel_sizes.ts";
import type { ResolvedConfig } from "./schema/mod.ts";
import { droplessSettings, gshardSettings, moeLayerProblems } from "./schema/moe_layer.ts";

export interface RuleContext {
  readonly worldSize: number;
  /** Names that plugins have registered; undefined when they are not loaded. */
  readonly modelTypes: readonly string[] | undefined;
}

type Fail = (path: string, message: string) => void;
type Rule = (config: ResolvedConfig, fail: Fail, context: RuleContext) => void;

export const rules: readonly Rule[] = [
  // Model
  function modelTypeIsKnown({ model_type, runtime }, fail, { modelTypes }) {
    const known = [...knownModelTypes, ...(modelTypes ?? [])];
    if (known.includes(model_type)) return;
    // What the modules register shows only once they are loaded.
    if (modelTypes === undefined && runtime.plugins.length > 0) return;
    const meant = nearest(model_type, known) ?? "INTERNLM2";
    fail("model_type", `no model is named "${model_type}"; ${meant} would do, or a model from runtime.plugins`);
  },
  function headsDivideHidden({ model }, fail) {
    const { hidden_size: hidden, num_attention_heads: heads, head_dim } = model;
    if (head_dim !== null || hidden % heads === 0) return;
    fail(
      "model.num_attention_heads",
      `${heads} does not divide hidden_size ${hidden}; ${divisorsAround(hidden, heads)}`,
    );
  },
  function headsAreEvenlyWide({ model }, fail) {
    const { hidden_size: hidden, num_attention_heads: heads, head_dim } = model;
    if (head_dim !== null && head_dim % 2 !== 0) {
      fail("model.head_dim", `${head_dim} is odd, and rotary embedding turns pairs; ${head_dim + 1} would work`);
    }
    if (head_dim !== null || hidden % heads !== 0 || (hidden / heads) % 2 === 0) return;
    fail(
      "model.hidden_size",
      `${hidden} gives heads of odd width ${hidden / heads}, which rotary embedding cannot pair; ` +
        `${2 * heads * Math.ceil(hidden / (2 * heads))} would work`,
    );
  },
  function keyHeadsDivideQueryHeads({ model }, fail) {
    const { num_attention_heads: heads, num_kv_attention_heads: shared } = model;
    if (heads % shared === 0) return;
    fail(
      "model.num_kv_attention_heads",
      `${shared} does not divide num_attention_heads ${heads}; ${divisorsAround(heads, shared)}`,
    );
  },
  function multiHeadTypesHaveNoGroups({ model, model_type }, fail) {
    if (!familyDefaults(model_type).multiHead || model.num_kv_attention_heads === model.num_attention_heads) return;
    fail(
      "model.num_kv_attention_heads",
      `${model.num_kv_attention_heads} differs from num_attention_heads, but ${model_type} has no grouped heads; ` +
        `${model.num_attention_heads} works, or model_type INTERNLM2`,
    );
  },
  function multiHeadTypesHaveBiases({ model, model_type }, fail) {
    if (!familyDefaults(model_type).multiHead || !model.no_bias) return;
    fail("model.no_bias", `true is not to be had with ${model_type}; false works, or model_type INTERNLM2`);
  },
  function multiHeadTypesHavePlainHeads({ model, model_type }, fail) {
    if (!familyDefaults(model_type).multiHead || !model.norm_head) return;
    fail("model.norm_head", `true is not to be had with ${model_type}; false works, or model_type INTERNLM2`);
  },
  function dynamicNtkIsMultiHead({ model, model_type }, fail) {
    if (!model.use_dynamic_ntk_rope || familyDefaults(model_type).multiHead) return;
    fail("model.use_dynamic_ntk_rope", `true is not to be had with ${model_type}; false works, or model_type INTERNLM`);
  },
  function biasesApartAreQwens({ model, model_type }, fail, { modelTypes }) {
    const builtIn = knownModelTypes.includes(model_type) || modelTypes === undefined;
    if (["QWEN2", "QWEN2MOE", "MIXTRALMOE"].includes(model_type) || !builtIn) return;
    for (const field of ["qkv_bias", "o_bias"] as const) {
      if (model[field] === null) continue;
      fail(`model.${field}`, `${model[field]} means nothing to ${model_type}; model.no_bias rules its biases`);
    }
  },
  function feedForwardHasWidth({ model: { hidden_size: hidden, mlp_ratio: ratio } }, fail) {
    if (Math.trunc(hidden * ratio) >= 1) return;
    fail("model.mlp_ratio", `${ratio} of hidden_size ${hidden} leaves the feed-forward part no width; 4 would work`);
  },
  function somethingIsLeft({ model, loss }, fail) {
    if (model.drop_rate === 1) fail("model.drop_rate", "1 drops everything; 0.1 would work");
    if (loss.label_smoothing === 1) fail("loss.label_smoothing", "1 leaves nothing of the label; 0.1 would work");
  },
  function unitOffsetIsRms({ model }, fail) {
    if (!model.add_unit_offset || model.norm_type === "rmsnorm") return;
    fail("model.add_unit_offset", `true is not to be had with norm_type ${model.norm_type}; rmsnorm would work`);
  },
  function interleavingIsSaidOnce({ model }, fail) {
    if (model.adapt_hf === null || model.adapt_hf !== model.qk_interleaved) return;
    fail(
      "model.qk_interleaved",
      `${model.qk_interleaved} must be the opposite of adapt_hf ${model.adapt_hf}; leave adapt_hf out`,
    );
  },
  function windowHasWidth({ model }, fail) {
    if (!model.use_sliding_window || model.sliding_window !== null) return;
    fail("model.sliding_window", "missing; use_sliding_window needs a number of keys, such as 4096");
  },
  function layersFillStages({ model, parallel }, fail) {
    const { num_layers: layers, num_chunks: chunks } = model;
    const stages = parallel.pipeline.size;
    if (stages === 1) return; // one stage has no chunks
    if (layers % chunks !== 0) {
      fail(
        "model.num_layers",
        `${layers} is not a multiple of num_chunks ${chunks}; ${roundUp(layers, chunks)} would work`,
      );
    } else if (layers < stages * chunks) {
      fail(
        "model.num_layers",
        `${layers} leaves some of ${stages} stages with ${chunks} chunks empty; ${stages * chunks} would work`,
      );
    }
  },
  function interleavingTakesWholeRounds({ data, model, parallel }, fail) {
    const { size: stages } = parallel.pipeline;
    if (stages === 1 || model.num_chunks === 1 || data.micro_num % stages === 0) return;
    fail(
      "data.micro_num",
      `${data.micro_num} is no multiple of the ${stages} stages, which the interleaved schedule deals them to in turn; ` +
        `${roundUp(data.micro_num, stages)} would work`,
    );
  },
  function headsSplit({ model, model_type, parallel: { tensor } }, fail) {
    if (!knownModelTypes.includes(model_type)) return; // a plugin's model may have none
    const { num_attention_heads: heads, num_kv_attention_heads: shared } = model, { size } = tensor;
    if (heads % size !== 0) {
      fail(
        "parallel.tensor.size",
        `${size} does not divide num_attention_heads ${heads}; ${divisorsAround(heads, size)}`,
      );
    } else if (shared % size !== 0 && size % shared !== 0) {
      fail(
        "parallel.tensor.size",
        `${size} neither divides num_kv_attention_heads ${shared} nor is a multiple of it; ${
          divisorsAround(shared, size)
        }`,
      );
    }
  },
  function sequenceSplits({ data, parallel: { tensor } }, fail) {
    const { seq_len, micro_bsz, packed_length: length } = data, { size, mode } = tensor;
    if (mode === "mtp" || length % size === 0) return;
    let longer = seq_len;
    while (longer * micro_bsz % size !== 0) longer++;
    fail(
      "data.seq_len",
      `${seq_len} times micro_bsz ${micro_bsz} tokens a micro-batch cannot be divided over parallel.tensor.size ${size}, as ` +
        `mode ${mode} does; ${longer} would work`,
    );
  },
  function vocabularySplits({ model, parallel }, fail) {
    for (const section of ["tensor", "weight"] as const) {
      const size = parallel[section].size;
      if (model.vocab_size % size === 0) continue;
      fail(
        "model.vocab_size",
        `${model.vocab_size} is not a multiple of parallel.${section}.size ${size}; ` +
          `${roundUp(model.vocab_size, size)} would work`,
      );
    }
  },

  // Data
  function lossDivisorIsMicroNum({ data, parallel }, fail) {
    if (parallel.pipeline.size > 1 || data.gradient_accumulation === data.micro_num) return;
    fail(
      "data.gradient_accumulation",
      `${data.gradient_accumulation} differs from micro_num, which only a pipeline allows; ${data.micro_num} would work`,
    );
  },
  function skippedBatchesAscend({ data }, fail) {
    if (data.skip_batches.trim() === "") return;
    let last = -1;
    for (const span of data.skip_batches.split(",")) {
      const match = span.trim().match(/^(\d+)(?:-(\d+))?$/);
      const [first, end] = match ? [Number(match[1]), Number(match[2] ?? match[1])] : [NaN, NaN];
      if (first > last && end >= first) {
        last = end;
        continue;
      }
      const wrong = match
        ? `"${span.trim()}" does not come after what is before it`
        : `"${span.trim()}" is no batch or range`;
      return fail("data.skip_batches", `"${data.skip_batches}": ${wrong}; "5-10,23" would work`);
    }
  },
  function rampUpGrows({ data, model, parallel }, fail) {
    const ramp = data.rampup_batch_size.trim();
    if (ramp === "") return;
    const numbers = ramp.split(/\s+/).map(Number);
    const [start, increment] = numbers;
    const path = "data.rampup_batch_size";
    if (numbers.length !== 3 || !numbers.every((number) => Number.isInteger(number) && number >= 1)) {
      return fail(path, `"${ramp}" is not "start increment every", three whole numbers; "1 1 100" would work`);
    }
    if (start > data.micro_num) {
      return fail(path, `"${ramp}" starts above micro_num ${data.micro_num}; "${data.micro_num} 1 100" would work`);
    }
    if (parallel.pipeline.size === 1) return;
    const { micro_num, micro_bsz } = data;
    if ((micro_num - start) % increment !== 0 || [micro_num, start, increment].some((size) => size % micro_bsz !== 0)) {
      fail(
        path,
        `"${ramp}": in a pipeline the increment must lead from the start to micro_num ${micro_num}, all of them multiples ` +
          `of micro_bsz ${micro_bsz}; "" would work`,
      );
    }
    const { size: stages } = parallel.pipeline;
    if (model.num_chunks > 1 && [start, increment].some((size) => size % stages !== 0)) {
      fail(
        path,
        `"${ramp}": the interleaved schedule deals micro-batches to the ${stages} stages in turn, so that start and increment ` +
          `are multiples of them; "${stages} ${stages} 100" would work`,
      );
    }
  },
  function mixturesHaveFolders({ data }, fail) {
    if (data.mixture === null) return;
    if (data.train_folder === null) {
      fail(
        "data.mixture",
        "has weights of folders, and data.train_folder is not set; naming it, or no mixture, would work",
      );
    } else if (!Object.values(data.mixture).some((weight) => weight > 0)) {
      fail("data.mixture", "has no weight above 0; {en: 3, code: 1} would work");
    }
  },
  function streamsAreTokenized({ data }, fail) {
    if (data.type !== "streaming") return;
    if (data.tokenizer_path === null) {
      fail("data.tokenizer_path", "missing; data.type streaming needs the path of a tokenizer.json");
    }
    if (data.train_folder === null) fail("data.train_folder", "missing; data.type streaming needs a folder of text");
    if (!data.use_packed_dataset) {
      fail("data.use_packed_dataset", "false; data.type streaming packs its rows, so true would work");
    }
  },

  // Optimizer
  function warmUpFits({ lr_scheduler: lr }, fail) {
    const warmUp = Math.trunc(lr.total_steps * lr.warmup_ratio), left = lr.total_steps - warmUp - 1;
    if (lr.init_steps <= left) return;
    const cosine = `leave${lr.init_steps > 0 ? "" : "s"} the cosine no step of total_steps ${lr.total_steps}`;
    if (left < 0) fail("lr_scheduler.warmup_ratio", `${lr.warmup_ratio} ${cosine}; less would work`);
    else {
      const many = `${lr.init_steps} steps at rate 0 and ${warmUp} of warm-up`;
      fail("lr_scheduler.init_steps", `${many} ${cosine}; ${left}${left > 0 ? " or less" : ""} would work`);
    }
  },
  function scalesAreOrdered({ grad_scaler: { fp16, max_scale } }, fail) {
    if (fp16.min_scale !== null && fp16.initial_scale < fp16.min_scale) {
      fail("grad_scaler.fp16.initial_scale", `${fp16.initial_scale} is below min_scale; ${fp16.min_scale} would work`);
    }
    if (max_scale !== null && fp16.initial_scale > max_scale) {
      fail("grad_scaler.fp16.initial_scale", `${fp16.initial_scale} is above max_scale; ${max_scale} would work`);
    }
  },
  function halfPrecisionScalesMove({ grad_scaler, model }, fail) {
    if (model.dtype !== "float16") return;
    if (grad_scaler.growth_factor === 1) {
      fail("grad_scaler.growth_factor", "1 never grows a float16 scale; 2 would work");
    }
    if (grad_scaler.backoff_factor === 1) {
      fail("grad_scaler.backoff_factor", "1 never shrinks a float16 scale; 0.5 would work");
    }
  },
  function momentsAreUsable({ adam, beta2_scheduler }, fail) {
    const decays = { "adam.adam_beta1": adam.adam_beta1, "adam.adam_beta2": adam.adam_beta2 };
    for (const [path, decay] of Object.entries(decays)) {
      if (decay === 1) fail(path, "1 never takes in a gradient; 0.95 would work");
    }
    if (adam.adam_eps === 0) {
      fail(
        "adam.adam_eps",
        "0 makes weights that get no gradient 0/0, as of tokens that a batch lacks; 1e-8 would work",
      );
    }
    if (beta2_scheduler.init_beta2 === 1 && adam.adam_beta2 !== 1) {
      fail("beta2_scheduler.init_beta2", `1 never takes in a gradient; ${adam.adam_beta2} would work`);
    }
  },
  function naiveLossesNeedWholeLogits({ loss, model }, fail) {
    if (!loss.op_type.endsWith("_naive") || !model.parallel_output) return;
    fail("loss.op_type", `${loss.op_type} needs model.parallel_output: false; py_vocab_parallel would work as it is`);
  },
  function zeroBubbleStandsAlone({ hybrid_zero_optimizer: zero, model, parallel }, fail) {
    if (parallel.pipeline.mode !== "ZBH1") return;
    const withZb = "cannot be with parallel.pipeline.mode ZBH1";
    if (zero.overlap_sync_grad) fail("hybrid_zero_optimizer.overlap_sync_grad", `true ${withZb}; false would work`);
    if (model.num_chunks > 1) fail("model.num_chunks", `${model.num_chunks} ${withZb}; 1 would work`);
    if (parallel.weight.overlap && parallel.tensor.mode === "isp") {
      fail("parallel.weight.overlap", `true ${withZb}; false would work`);
    }
  },
  function scheduleFollowsMode({ model, parallel }, fail) {
    const { schedule, mode } = parallel.pipeline;
    const asked = mode !== "1F1B" ? mode.toLowerCase() : model.num_chunks > 1 ? "interleaved" : undefined;
    const path = "parallel.pipeline.schedule";
    if (asked !== undefined && schedule !== asked) {
      fail(
        path,
        `${schedule} is not what mode ${mode} and num_chunks ${model.num_chunks} ask for; ${asked} would work`,
      );
    } else if (schedule === "interleaved" && model.num_chunks === 1) {
      fail(path, "interleaved needs several chunks; model.num_chunks: 2 would work");
    }
  },
  function selectiveCheckpointIsIsp(top, fail) {
    const { parallel } = top;
    if (top.selective_checkpoint && parallel.tensor.mode !== "isp") {
      fail(
        "selective_checkpoint",
        `true needs parallel.tensor.mode isp, not ${parallel.tensor.mode}; false would work`,
      );
    }
    if (!top.selective_checkpoint_offload) return;
    if (!top.selective_checkpoint || parallel.weight.launch_allgather_before !== "wo") {
      fail(
        "selective_checkpoint_offload",
        "true needs selective_checkpoint: true and parallel.weight.launch_allgather_before: wo; false would work",
      );
    }
  },

  // Parallel
  function weightsAreShardedOnce({ parallel }, fail) {
    if (!parallel.zero1.fsdp || parallel.tensor.mode !== "isp") return;
    fail(
      "parallel.zero1.fsdp",
      "true cannot be with parallel.tensor.mode isp, whose parallel.weight.size divides weights; false would work",
    );
  },
  function weightsSplitInIsp({ parallel }, fail) {
    if (parallel.weight.size === 1 || parallel.tensor.mode === "isp") return;
    fail(
      "parallel.weight.size",
      `${parallel.weight.size} needs parallel.tensor.mode isp, not ${parallel.tensor.mode}; 1 would work`,
    );
  },
  function expertsAreThere({ model, model_type }, fail) {
    const { num_experts, top_k } = model;
    if (num_experts > 1 && workingModelTypes.includes(model_type) && !typesWithExperts.includes(model_type)) {
      fail(
        "model.num_experts",
        `${num_experts} needs a model type with experts: ${typesWithExperts.join(", ")}; 1 works`,
      );
    }
    if (num_experts > 1 && top_k > num_experts) fail("model.top_k", `${top_k} is more than num_experts ${num_experts}`);
  },
  function choicesAreSaidOnce({ model, moe }, fail) {
    if (!model.moe_type.startsWith("MegaBlock") || moe.top_k === model.top_k) return;
    fail("moe.top_k", `${moe.top_k} differs from model.top_k ${model.top_k}; ${model.top_k} would work`);
  },
  function expertLayerIsKnown({ model, data }, fail) {
    const { num_experts, top_k, moe_type, moe_layer_kwargs, use_swiglu } = model;
    if (num_experts === 1) return;
    const problems = moeLayerProblems(moe_type, moe_layer_kwargs);
    for (const { path, message } of problems) fail(`model.moe_layer_kwargs.${path}`, message);
    if (problems.length > 0) return;
    if (!use_swiglu) {
      fail("model.use_swiglu", "false cannot be with experts; true would work");
    }
    if (moe_type === "Dropless") {
      const { drop_and_pad, capacity_factor } = droplessSettings(moe_layer_kwargs);
      if (drop_and_pad && capacity_factor === null) {
        fail("model.moe_layer_kwargs.drop_and_pad", "true needs a capacity_factor, such as 1");
      }
      return;
    }
    if (moe_type !== "GShard") return;
    const { use_fused_gating, noisy_gate_policy, drop_tokens, min_capacity } = gshardSettings(moe_layer_kwargs);
    if (noisy_gate_policy === "RSample" && (use_fused_gating || top_k > 1)) {
      fail(
        "model.moe_layer_kwargs.noisy_gate_policy",
        "RSample needs top_k 1 and use_fused_gating: false; Jitter would work",
      );
    }
    if (!use_fused_gating && top_k === 1 && drop_tokens && data.packed_length < min_capacity) {
      fail(
        "model.moe_layer_kwargs.min_capacity",
        `${min_capacity} is more than the ${data.packed_length} tokens of a micro-batch; 0 would work`,
      );
    }
  },
  function expertSizesNeedExperts({ model, parallel }, fail) {
    const { expert, expert_weight, tensor } = parallel;
    if (model.num_experts === 1 && expert.size > 1) {
      fail("parallel.expert.size", `${expert.size} needs model.num_experts above 1; -1 would work`);
    }
    if (expert_weight.size > 1 && (model.num_experts === 1 || tensor.mode !== "isp")) {
      fail(
        "parallel.expert_weight.size",
        `${expert_weight.size} needs model.num_experts above 1 and parallel.tensor.mode isp; 1 would work`,
      );
    }
  },
  function expertsShareNothing({ model, parallel }, fail, { worldSize }) {
    if (model.num_experts === 1) return;
    const dp = Math.max(1, Math.floor(worldSize / parallel.pipeline.size / parallel.tensor.size));
    if (parallel.zero1.size !== -1 && parallel.zero1.size !== dp) {
      fail("parallel.zero1.size", `${parallel.zero1.size} cannot be with experts; -1 would work`);
    }
  },
  function twoDimensionsFit({ data, parallel }, fail) {
    const { enable, head_size, context_size, device_placement_strategy: placement } = parallel.sequence_2D;
    if (!enable) return;
    if (head_size * context_size !== parallel.tensor.size) {
      fail(
        "parallel.sequence_2D.context_size",
        `${context_size} times head_size ${head_size} is not parallel.tensor.size ${parallel.tensor.size}; ` +
          `head_size 1 and context_size ${parallel.tensor.size} would work`,
      );
    }
    if (placement.head_first && head_size > 1 && placement.interleaved) {
      fail(
        "parallel.sequence_2D.device_placement_strategy.interleaved",
        "true cannot be with head_first and head_size above 1; false would work",
      );
    }
    if (data.use_packed_dataset) fail("data.use_packed_dataset", "true cannot be with sequence_2D; false would work");
  },
  function sizesFitRanks(config, fail, { worldSize }) {
    for (const { path, message } of parallelProblems(config, worldSize)) fail(path, message);
  },

  // Checkpoints
  function snapshotsLieApart({ ckpt }, fail) {
    const { oss_snapshot_freq, save_ckpt_folder, snapshot_ckpt_folder } = ckpt;
    if (oss_snapshot_freq === null || save_ckpt_folder === null || snapshot_ckpt_folder === null) return;
    const plain = (folder: string) => folder.replace(/^local:/, "").replace(/^(\.\/)+|\/+$/g, "");
    if (plain(save_ckpt_folder) !== plain(snapshot_ckpt_folder)) return;
    fail(
      "ckpt.snapshot_ckpt_folder",
      `${snapshot_ckpt_folder} is save_ckpt_folder, whose checkpoints would be removed with old snapshots; ` +
        `${snapshot_ckpt_folder}/snapshot would work`,
    );
  },
  function oldCheckpointNamesAgree({ ckpt }, fail) {
    if (ckpt.load_model_only_folder === null || ckpt.load_ckpt_folder === null) return;
    fail("ckpt.load_ckpt_folder", "cannot be given beside load_model_only_folder; load_ckpt_info says both");
  },
];

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

/** "4 or 8 would": the divisors of `whole` next to `near`, as far as a short search finds them. */
function divisorsAround(whole: number, near: number): string {
  const start = Math.min(near, whole);
  const search = (step: 1 | -1) => {
    for (let value = start, steps = 0; value >= 1 && value <= whole && steps < 10_000; value += step, steps++) {
      if (whole % value === 0) return value;
    }
  };
  const [below, above] = [search(-1) ?? 1, search(1)];
  return above === undefined || above === below ? `${below} would` : `${below} or ${above} would`;
}
