import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { ConfigError } from "./error.ts";
import { resolveConfig, type ResolveOptions } from "./resolve.ts";

type Input = Record<string, Record<string, unknown> | unknown>;

/** A small record that works, with changes: sections are merged. */
function record(changes: Input = {}): Input {
  const base: Record<string, Record<string, unknown>> = {
    model: { num_layers: 2, hidden_size: 64, num_attention_heads: 4, vocab_size: 512 },
    data: { seq_len: 16, micro_bsz: 2, total_steps: 3 },
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
  };
  const merged: Input = { model_type: "INTERNLM2", ...base };
  for (const [key, value] of Object.entries(changes)) {
    merged[key] = key in base ? { ...base[key], ...value as object } : value;
  }
  return merged;
}

function problemsOf(input: unknown, options?: ResolveOptions): Record<string, string> {
  const error = assertThrows(() => resolveConfig(input, options), ConfigError) as ConfigError;
  for (const { path, message } of error.problems) assertStringIncludes(error.message, `${path}: ${message}`);
  return Object.fromEntries(error.problems.map(({ path, message }) => [path, message]));
}

/** The message of the one and only problem. */
function problemOf(changes: Input, options?: ResolveOptions): string {
  const problems = Object.entries(problemsOf(record(changes), options));
  assertEquals(problems.length, 1, JSON.stringify(problems));
  return problems[0].join(": ");
}

Deno.test("resolveConfig() reports ten faults of a record at once", () => {
  const problems = problemsOf({
    JOB_NAME: 7, // wrong type
    optimizer: { lr: 1 }, // no such section
    model: {
      num_layers: 2,
      hidden_size: 64,
      num_attention_heads: 6, // does not divide 64
      vocab_size: "many", // not a number
      chekpoint: 0.5, // misspelt
      norm_type: "rms", // not a choice
      apply_post_layer_norm: true, // not built
    },
    data: { seq_len: 0, micro_bsz: 2, total_steps: 3, gradient_accumulation: 2 }, // below 1; differs from micro_num
    adam: {}, // lr is missing
    ckpt: { checkpoint_every: 5 }, // no folder
  }, { worldSize: 2 });
  assertEquals(Object.keys(problems).sort(), [
    "JOB_NAME",
    "adam.lr",
    "ckpt.save_ckpt_folder",
    "data.gradient_accumulation",
    "data.seq_len",
    "model.apply_post_layer_norm",
    "model.chekpoint",
    "model.norm_type",
    "model.num_attention_heads",
    "model.vocab_size",
    "optimizer",
  ]);
});

Deno.test("resolveConfig() gives each problem's value, and one that works", () => {
  const says = (changes: Input, ...parts: string[]) => {
    const problem = problemOf(changes);
    for (const part of parts) assertStringIncludes(problem, part);
  };
  says(
    { model: { num_attention_heads: 6 } },
    "model.num_attention_heads: 6 does not divide hidden_size 64; 4 or 8 would",
  );
  says({ model: { hidden_size: 2 ** 50 + 2, num_attention_heads: 2 ** 40 } }, "1 would");
  says({ model: { checkpoint: 1.5 } }, "1.5 is not a number from 0 to 1; 0 would work");
  says({ model: { norm_type: "rmsnrm" } }, `"rmsnrm" is not one of rmsnorm, layernorm; "rmsnorm" would work`);
  says({ data: { micro_num: 2.4 } }, "2.4 is not a whole number of at least 1; 2 would work");
  says({ JOB_NAME: 12 }, `12 is not text; "12" would work`);
  says({ runtime: 3 }, "3 is a number; a mapping of fields is needed");
  says({ data: { total_steps: null } }, "null is not a whole number of at least 1; 50000 would work");
  says({ data: { skip_batches: "9-3" } }, `"9-3"`, `"5-10,23" would work`);
  says({ data: { rampup_batch_size: "2 2" } }, `"1 1 100" would work`);
  says({ model_type: "INTERNLM4" }, `"INTERNLM4"`, "INTERNLM");
  says({ lr_scheduler: { init_steps: 3 } }, "3 steps at rate 0 and 0 of warm-up leave the cosine no step", "2 or less");
  says({ lr_scheduler: { warmup_ratio: 1 } }, "1 leaves the cosine no step of total_steps 3; less would work");
});

Deno.test("resolveConfig() names the nearest field for an unknown one", () => {
  assertStringIncludes(problemOf({ model: { num_layer: 3 } }), "num_layers is the nearest");
  assertStringIncludes(problemOf({ model: { weight_decay: 3 } }), "adam.weight_decay is the nearest");
  assertStringIncludes(problemOf({ model: { num_kv_head: 3 } }), "num_kv_attention_heads is the nearest");
  assertStringIncludes(problemOf({ Model: {} }), "model is the nearest");
  assertStringIncludes(problemOf({ loss: { zzzzzzzz: 3 } }), "is the nearest of loss");
  assertStringIncludes(problemOf({ constructor: {} }), "there is no such field");
});

Deno.test("resolveConfig() leaves rules out that would only repeat a mistake", () => {
  assertEquals(Object.keys(problemsOf(record({ model: { hidden_size: "wide" } }))), ["model.hidden_size"]);
});

Deno.test("resolveConfig() refuses input that is no record", () => {
  for (const input of [null, 3, "text", [1]]) assertThrows(() => resolveConfig(input), ConfigError, "(record)");
});

Deno.test("resolveConfig() computes derived values and defaults of the model type", () => {
  const { model, data, lr_scheduler, beta2_scheduler, parallel, ckpt, runtime } = resolveConfig(
    record({ data: { micro_num: 4 }, adam: { adam_beta2: 0.9 } }),
  );
  assertEquals([data.packed_length, data.gradient_accumulation, data.batch_size, data.valid_micro_num], [32, 4, 4, 4]);
  assertEquals([lr_scheduler.total_steps, beta2_scheduler.init_beta2], [3, 0.9]);
  assertEquals([model.num_kv_attention_heads, model.embedding_init_std, model.attn_other_init_std], [4, 0.02, 0.02]);
  assertEquals([parallel.pipeline.schedule, parallel.sequence_parallel], ["1f1b", false]);
  assertEquals([ckpt.checkpoint_every, ckpt.save_ckpt_folder], [null, null]);
  assertEquals(runtime.run_dir, "RUN/AnonymousJob");

  const bare = {
    data: { seq_len: 16, micro_bsz: 2, total_steps: 3 },
    adam: { lr: 1 },
    ckpt: { enable_save_ckpt: false },
  };
  const internlm = resolveConfig({ ...bare, model: { num_layers: 2, use_scaled_init: false } }).model;
  assertEquals([internlm.hidden_size, internlm.num_attention_heads, internlm.num_kv_attention_heads], [768, 12, 12]);
  assertEquals([internlm.embedding_init_std, internlm.ffn_other_init_std], [0.0052, 0.0015]);
  const llama = resolveConfig({ ...bare, model_type: "LLAMA2", model: { num_layers: 2 } }).model;
  assertEquals([llama.hidden_size, llama.num_attention_heads], [2048, 32]);
});

Deno.test("resolveConfig() accepts InternEvo's spellings", () => {
  const config = resolveConfig(
    record({
      model: { dtype: "torch.float32", mlp_ratio: "8/3", vocab_size: "2**9", checkpoint: true },
      grad_scaler: { fp16: { initial_scale: "2**16" }, max_scale: "2**24" },
      hybrid_zero_optimizer: { reduce_bucket_size: "512*1024*1024" },
      data: { train_folder: "None", rampup_batch_size: null, use_packed_dataset: "False" },
      parallel: { zero1: 1, tensor: 1, pipeline: 1 },
    }),
  );
  assertEquals([config.model.dtype, config.model.mlp_ratio, config.model.vocab_size], ["float32", 8 / 3, 512]);
  assertEquals([config.model.checkpoint, config.grad_scaler.max_scale], [1, 2 ** 24]);
  assertEquals(config.hybrid_zero_optimizer.reduce_bucket_size, 512 * 1024 * 1024);
  assertEquals([config.data.train_folder, config.data.rampup_batch_size], [null, ""]);
  assertEquals([config.data.use_packed_dataset, config.parallel.zero1.size], [false, 1]);
  for (const [spelling, dtype] of [["torch.half", "float16"], ["torch.bfloat16", "bfloat16"], ["tf32", "float32"]]) {
    assertEquals(resolveConfig(record({ model: { dtype: spelling } })).model.dtype, dtype);
  }
});

Deno.test("resolveConfig() takes pipeline.schedule for parallel.pipeline.schedule, but not both", () => {
  const options = { allowRefused: true, worldSize: 2 };
  const parallel = { pipeline: 2 };
  const config = resolveConfig(record({ parallel, pipeline: { schedule: "1f1b" } }), options);
  assertEquals(config.parallel.pipeline, { size: 2, interleaved_overlap: false, mode: "1F1B", schedule: "1f1b" });
  const both = { parallel: { pipeline: { schedule: "zbh1" } }, pipeline: { schedule: "1f1b" } };
  assert("pipeline.schedule" in problemsOf(record(both), options));
});

Deno.test("resolveConfig() keeps runtime.backend: null, which YAML reads as nothing", () => {
  assertEquals(resolveConfig(record({ runtime: { backend: null } })).runtime.backend, "null");
});

Deno.test("resolveConfig() reads an interval of infinity as null", () => {
  const ckpt = { enable_save_ckpt: true, save_ckpt_folder: "local:x" };
  for (const never of [Infinity, "inf", null]) {
    assertEquals(resolveConfig(record({ ckpt: { ...ckpt, checkpoint_every: never } })).ckpt.checkpoint_every, null);
  }
  assertStringIncludes(problemOf({ ckpt }), "ckpt.checkpoint_every: missing");
});

Deno.test("resolveConfig() refuses what the user asks for and is not built, never a default", () => {
  resolveConfig(record()); // has defaults for every refused field
  assertStringIncludes(
    problemOf({ parallel: { pipeline: { mode: "ZBV" } } }),
    `parallel.pipeline.mode: "ZBV" is refused: Troupe does not do this yet; "1F1B" or "ZBH1" works`,
  );
  assertStringIncludes(problemOf({ generation: { eos_id: 1 } }), "(Text generation); troupe convert makes");
  assertStringIncludes(problemOf({ model_type: "BAICHUAN2" }), "INTERNLM2");
  assertStringIncludes(
    problemOf({ ckpt: { enable_save_ckpt: true, checkpoint_every: 1, save_ckpt_folder: "boto3:s3://a.b/c" } }),
    "object stores",
  );
  // The default, written out, is harmless; so is a detail of something that is off.
  resolveConfig(record({ model: { num_experts: 1, top_k: 2 }, parallel: { weight: { size: 1, overlap: true } } }));
});

Deno.test("resolveConfig() takes what MegaBlock layers are set to from the section moe", () => {
  const megaBlock = { num_experts: 4, moe_type: "MegaBlock" };
  const of = (rest: object, model: object = {}) =>
    resolveConfig(record({ model_type: "MIXTRALMOE", model: { ...megaBlock, ...model }, ...rest })).model;
  const { top_k, moe_layer_kwargs } = of({ moe: { top_k: 3, capacity_factor: 1.5 } });
  assertEquals([top_k, moe_layer_kwargs], [3, { capacity_factor: 1.5, drop_tokens: true }]);
  assertEquals(of({}).top_k, 2);
  assertEquals(of({}, { moe_type: "MegaBlock-Dropless" }).moe_layer_kwargs, {});
  assertEquals(of({}, { moe_type: "GShard" }).top_k, 1);
});

Deno.test("resolveConfig() refuses a beginning that cannot be loaded, and addresses that are none", () => {
  const begin = (info: object) => problemOf({ ckpt: { load_ckpt_info: { path: "local:x", ...info } } });
  assertStringIncludes(begin({ ckpt_type: "llama" }), 'there is no ckpt_type "llama" here; internevo works');
  assertStringIncludes(begin({ content: ["optimizer"] }), "content without model loads nothing; add model");
  assertStringIncludes(begin({ ckpt_type: "hf", content: ["all"] }), "content: [model] works");
  assertStringIncludes(begin({ content: ["weights"] }), "ckpt.load_ckpt_info.content.0");
  assertStringIncludes(begin({ path: "boto3:s3://a.b/c" }), "object stores");
  const { ckpt } = resolveConfig(
    record({ ckpt: { load_ckpt_info: { path: "x", content: "model", ckpt_type: "hf" } } }),
  );
  assertEquals(ckpt.load_ckpt_info, { path: "x", content: ["model"], ckpt_type: "hf" });

  const alert = { enable_feishu_alert: true, feishu_alert_address: "feishu.cn" };
  assertStringIncludes(problemOf({ monitor: { alert } }), 'monitor.alert.feishu_alert_address: "feishu.cn" is refused');
  const save = { enable_save_ckpt: true, checkpoint_every: 9, oss_snapshot_freq: 3, save_ckpt_folder: "local:x/" };
  assertStringIncludes(problemOf({ ckpt: { ...save, snapshot_ckpt_folder: "./x" } }), "./x/snapshot would work");
});

Deno.test("resolveConfig() tells about settings that change nothing", () => {
  const notices: string[] = [];
  const input = record({ cudnn_benchmark: true, data: { packed_length: 77 }, model: { dtype: "torch.tf32" } });
  const config = resolveConfig(input, { onNotice: (line) => notices.push(line) });
  assertEquals(config.data.packed_length, 32);
  for (const path of ["cudnn_benchmark", "data.packed_length", "model.dtype"]) {
    assert(notices.some((line) => line.startsWith(`${path}: `)), path);
  }
  assertEquals(notices.length, 3);

  const grid = { enable: true, head_size: 1, context_size: 2, window_size: 2 };
  const weight = { size: 2, early_reduce_scatter_release: false, layer_fuse_isp_comm: true };
  const divided = record({
    data: { use_packed_dataset: false },
    parallel: { tensor: { size: 2, mode: "isp" }, weight, sequence_2D: grid },
  });
  notices.length = 0;
  resolveConfig(divided, { worldSize: 2, onNotice: (line) => notices.push(line) });
  assertEquals(notices.map((line) => line.split(": ")[0]), [
    "parallel.weight.early_reduce_scatter_release",
    "parallel.weight.layer_fuse_isp_comm",
    "parallel.sequence_2D.enable",
    "parallel.sequence_2D.window_size",
  ]);
});

Deno.test("resolveConfig() knows the model types of plugins", () => {
  const input = record({ model_type: "MINE", runtime: { plugins: ["./mine.ts"] } });
  assertEquals(resolveConfig(input).model_type, "MINE");
  assertEquals(resolveConfig(input, { modelTypes: ["MINE"] }).model_type, "MINE");
  assert("model_type" in problemsOf(input, { modelTypes: ["MIEN"] }));
  assert("model_type" in problemsOf(record({ model_type: "MINE" })));
});

Deno.test("resolveConfig() returns frozen data that survives JSON", () => {
  const config = resolveConfig(record({ data: { min_length_dict: { en: 3 } } }));
  assertEquals(JSON.parse(JSON.stringify(config)), config);
  assertThrows(() => ((config.data.min_length_dict as Record<string, number>).en = 4), TypeError);
  assertThrows(() => ((config.model as { num_layers: number }).num_layers = 4), TypeError);
});

Deno.test("resolveConfig() checks the rules between fields", () => {
  const broken = (changes: Input, path: string, worldSize = 8) => {
    const problems = problemsOf(record(changes), { allowRefused: true, worldSize });
    assert(path in problems, `${path} is not among ${JSON.stringify(problems)}`);
  };
  broken({ model: { num_kv_attention_heads: 3 } }, "model.num_kv_attention_heads");
  broken({ model: { hidden_size: 12 } }, "model.hidden_size");
  broken({ model_type: "INTERNLM", model: { num_kv_attention_heads: 2 } }, "model.num_kv_attention_heads");
  broken({ model_type: "INTERNLM", model: { no_bias: true } }, "model.no_bias");
  broken({ model_type: "LLAMA2", model: { qkv_bias: true } }, "model.qkv_bias");
  broken({ model: { head_dim: 7 } }, "model.head_dim");
  broken({ model: { add_unit_offset: true, norm_type: "layernorm" } }, "model.add_unit_offset");
  broken({ model: { use_dynamic_ntk_rope: true } }, "model.use_dynamic_ntk_rope");
  broken({ model: { adapt_hf: true, qk_interleaved: true } }, "model.qk_interleaved");
  broken({ model: { num_layers: 4, num_chunks: 2 }, parallel: { pipeline: 2 } }, "data.micro_num");
  broken({
    model: { num_layers: 4, num_chunks: 2 },
    data: { micro_num: 4, rampup_batch_size: "1 1 10" },
    parallel: { pipeline: 2 },
  }, "data.rampup_batch_size");
  broken({ parallel: { pipeline: 4 } }, "model.num_layers");
  broken({ model: { vocab_size: 511 }, parallel: { tensor: 2 } }, "model.vocab_size");
  broken({ parallel: { tensor: 8 } }, "parallel.tensor.size");
  broken(
    { model: { num_attention_heads: 12, num_kv_attention_heads: 6, hidden_size: 48 }, parallel: { tensor: 4 } },
    "parallel.tensor.size",
  );
  broken({ model: { mlp_ratio: 0.001 } }, "model.mlp_ratio");
  broken({ model: { drop_rate: 1 } }, "model.drop_rate");
  broken({ loss: { label_smoothing: 1 } }, "loss.label_smoothing");
  broken({ adam: { adam_eps: 0 } }, "adam.adam_eps");
  broken({ data: { seq_len: 9, micro_bsz: 1 }, parallel: { tensor: { size: 2, mode: "msp" } } }, "data.seq_len");
  broken({ data: { gradient_accumulation: 2 } }, "data.gradient_accumulation");
  broken({ loss: { op_type: "torch_naive" } }, "loss.op_type");
  broken({ parallel: { zero1: { fsdp: true }, tensor: { size: 2, mode: "isp" } } }, "parallel.zero1.fsdp");
  broken({ parallel: { weight: 2 } }, "parallel.weight.size");
  broken({ parallel: { expert: 2 } }, "parallel.expert.size");
  broken({ parallel: { tensor: 3 } }, "parallel.tensor.size");
  broken({ parallel: { zero1: 3 } }, "parallel.zero1.size");
  broken({ model: { num_experts: 4 } }, "model.num_experts"); // INTERNLM2 has none
  const moe = (model: object, rest: object = {}) => ({ model_type: "INTERNLM_MoE", model, ...rest });
  broken(moe({ num_experts: 3 }), "model.num_experts");
  broken(moe({ num_experts: 4, top_k: 5 }), "model.top_k");
  broken(moe({ num_experts: 4, moe_layer_kwargs: { room: 1 } }), "model.moe_layer_kwargs.room");
  broken(moe({ num_experts: 4, moe_layer_kwargs: { capacity_factor: 0 } }), "model.moe_layer_kwargs.capacity_factor");
  broken(
    moe({ num_experts: 4, moe_type: "Dropless", moe_layer_kwargs: { drop_and_pad: true } }),
    "model.moe_layer_kwargs.drop_and_pad",
  );
  broken(
    moe({ num_experts: 4, moe_layer_kwargs: { noisy_gate_policy: "RSample" } }),
    "model.moe_layer_kwargs.noisy_gate_policy",
  );
  broken(moe({ num_experts: 4, moe_type: "MegaBlock", top_k: 3 }), "moe.top_k");
  broken(
    moe({ num_experts: 4, moe_type: "MegaBlock-Dropless", moe_layer_kwargs: { drop_tokens: false } }),
    "model.moe_layer_kwargs.drop_tokens",
  );
  broken(moe({ num_experts: 4, use_swiglu: false }), "model.use_swiglu");
  broken(moe({ num_experts: 4 }, { parallel: { zero1: 2 } }), "parallel.zero1.size");
  broken({ selective_checkpoint: true }, "selective_checkpoint");
  broken({ parallel: { sequence_2D: { enable: true, head_size: 2 } } }, "parallel.sequence_2D.context_size");
  broken(
    { hybrid_zero_optimizer: { overlap_sync_grad: true }, parallel: { pipeline: { size: 2, mode: "zbh1" } } },
    "hybrid_zero_optimizer.overlap_sync_grad",
  );
  broken({ data: { type: "streaming" } }, "data.tokenizer_path");
  broken({ model: { use_sliding_window: true } }, "model.sliding_window");
});
