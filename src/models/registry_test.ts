import { assert, assertEquals, assertThrows } from "@std/assert";
import { openNullBackend } from "../backend/null/backend.ts";
import { resolveConfig } from "../config/mod.ts";
import { elementCount, Graph } from "../graph/graph.ts";
import { declareInputs } from "../nn/inputs.ts";
import { singleRank } from "../parallel/mesh.ts";
import { shard } from "../parallel/shard.ts";
import { planModel } from "../train/model.ts";
import { assembleParameters, fromParameters } from "./convert.ts";
import type { ModelFamily, TensorMapping } from "./family.ts";
import { getModule, hasModule, modelTypeOf, moduleNames, registerModule } from "./registry.ts";

const record = (model_type: string, model: Record<string, unknown> = {}) =>
  resolveConfig({
    model_type,
    model: { num_layers: 2, hidden_size: 24, num_attention_heads: 6, vocab_size: 20, multiple_of: 8, ...model },
    data: { seq_len: 5, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
  });

/** What the published models of a family have and its record does not by itself. */
const asPublished: Record<string, Record<string, unknown>> = {
  INTERNLM_MoE: { num_experts: 3, top_k: 2, num_shared_experts: 1 },
  MIXTRALMOE: { num_experts: 4, top_k: 2, moe_type: "Dropless", qkv_bias: false },
  QWEN2MOE: { num_experts: 3, top_k: 2, num_shared_experts: 2, moe_type: "Dropless" },
  GEMMA: { add_unit_offset: true, tie_word_embeddings: true, gelu_approximate: "tanh", head_dim: 8 },
};

/** Every family with each choice that changes its tensors. */
const variants = moduleNames().flatMap((name) =>
  name === "INTERNLM"
    ? [record(name), record(name, { norm_type: "layernorm" })]
    : name === "INTERNLM_MoE"
    ? [record(name, asPublished[name]), record(name, { ...asPublished[name], num_shared_experts: 0 }), record(name)]
    : [{}, { no_bias: true }, { num_kv_attention_heads: 2 }, {
      num_kv_attention_heads: 3,
      no_bias: true,
      norm_type: "layernorm",
    }, { tie_word_embeddings: name !== "GEMMA", no_bias: true }]
      .filter((model) => !(name === "GEMMA" && "norm_type" in model)) // its norm is RMS by its nature
      .map((model) => record(name, { ...asPublished[name], ...model }))
);

Deno.test("registerModule() keeps the first family of a name", () => {
  const family: ModelFamily = { model: () => assert(false) as never, sharding: {} };
  assertEquals(registerModule("INTERNLM2", family), false);
  assert(getModule("INTERNLM2") !== family);
  assertEquals(registerModule("registry_test", family), true);
  assert(getModule("registry_test") === family && hasModule("registry_test"));
  assert(getModule("INTERNLM2") === getModule("INTERNLM2_PUBLIC"));
  assertThrows(() => getModule("nothing"), ReferenceError, "Cannot find model type nothing: known are INTERNLM,");
});

Deno.test("modelTypeOf() tells the family from config.json", () => {
  const llama = { model_type: "llama", num_attention_heads: 4 };
  assertEquals(modelTypeOf(llama), "LLAMA2");
  assertEquals(modelTypeOf({ ...llama, num_key_value_heads: 2, attention_bias: true }), "LLAMA2");
  assertEquals(modelTypeOf({ ...llama, num_key_value_heads: 4, attention_bias: true }), "INTERNLM");
  assertEquals(modelTypeOf({ model_type: "internlm" }), "INTERNLM");
  assertEquals(modelTypeOf({ model_type: "internlm2" }), "INTERNLM2");
  assertEquals(modelTypeOf({ model_type: "qwen2" }), "QWEN2");
  assertEquals(modelTypeOf({ model_type: "gemma" }), "GEMMA");
  assertThrows(() => modelTypeOf({ model_type: "mamba" }), RangeError, 'no family reads model_type "mamba"');
});

for (const [index, config] of variants.entries()) {
  const { model_type, model } = config, family = getModule(model_type);
  const what = `${model_type}, variant ${index}`;
  const parametersOf = () => {
    using backend = openNullBackend();
    return planModel(config, backend.traits, singleRank).plan.parameters;
  };

  Deno.test(`sharding of ${what} gives each parameter one layout`, () => {
    const graph = new Graph();
    const { inputs } = declareInputs(graph, { tokens: 5, training: false });
    family.model(graph, inputs, model);
    const { boxes } = shard(graph, { sharding: family.sharding, mesh: singleRank });
    assertEquals([...boxes.keys()], [...graph.parameters.keys()]);
    for (const [name, { extent }] of boxes) assertEquals(extent, graph.parameters.get(name)!.tensor.shape);
  });

  for (const formatName of ["huggingFace", "internEvo"] as const) {
    const format = family[formatName];
    if (!format) continue;
    Deno.test(`${formatName} tensors of ${what} hold every parameter once, and come back the same`, () => {
      const parameters = new Map(parametersOf().map(({ name, shape }) => [name, shape]));
      const data = new Map(
        [...parameters].map(([name, shape], i) =>
          [name, Float32Array.from({ length: elementCount(shape) }, (_, j) => 1000 * i + j)] as const
        ),
      );
      const mappings = format.tensors(model);
      assertEquals(new Set(mappings.map(({ tensor }) => tensor)).size, mappings.length);
      const back = new Map<string, Float32Array>();
      const write = (mapping: TensorMapping) => {
        const tensor = fromParameters(mapping, (name) => data.get(name)!);
        assertEquals(tensor.length, elementCount(mapping.shape), mapping.tensor);
        return tensor;
      };
      for (const [name, values] of assembleParameters(mappings, write)) {
        assert(!back.has(name), `${name} comes twice`);
        back.set(name, values);
      }
      assertEquals([...back.keys()].sort(), [...data.keys()].sort());
      for (const [name, values] of back) assertEquals(values, data.get(name), name);
    });
  }

  if (!family.huggingFace) continue;
  Deno.test(`config.json of ${what} describes the same model`, () => {
    const { toConfig, toSection, matches } = family.huggingFace!;
    if (model.norm_type === "layernorm") {
      assertThrows(() => toConfig(model), RangeError, 'model.norm_type is "layernorm"');
      return;
    }
    const written = JSON.parse(JSON.stringify(toConfig(model)));
    assert(matches(written));
    const again = record(model_type, toSection(written)).model;
    const tensors = (section: typeof model) => family.huggingFace!.tensors(section);
    assertEquals(tensors(again), tensors(model));
    for (
      const field of ["rope_base", "layer_norm_epsilon", "vocab_size", "num_layers", "tie_word_embeddings"] as const
    ) {
      assertEquals(again[field], model[field], field);
    }
  });
}

Deno.test("toConfig() refuses what config.json cannot tell", () => {
  const choices = { norm_head: true, qk_interleaved: true, use_swiglu: false, add_unit_offset: true, head_dim: 8 };
  for (const [field, value] of Object.entries(choices)) {
    const { model } = record("LLAMA2", { [field]: value });
    assertThrows(() => getModule("LLAMA2").huggingFace!.toConfig(model), RangeError, `model.${field} is ${value}`);
  }
  const { model } = record("INTERNLM", { use_dynamic_ntk_rope: true });
  assertThrows(() => getModule("INTERNLM").huggingFace!.toConfig(model), RangeError, "use_dynamic_ntk_rope is true");
});

Deno.test("toSection() refuses a config.json that this model cannot be", () => {
  const config = {
    model_type: "llama",
    hidden_size: 8,
    num_attention_heads: 2,
    num_hidden_layers: 1,
    vocab_size: 10,
    intermediate_size: 16,
  };
  const { toSection } = getModule("LLAMA2").huggingFace!;
  assertEquals(toSection(config).num_kv_attention_heads, 2);
  const faults: [Record<string, unknown>, string][] = [
    [{ vocab_size: "10" }, 'vocab_size is "10", a number is needed'],
    [{ head_dim: 3 }, "head_dim is 3, hidden_size / num_attention_heads = 4"],
    [{ tie_word_embeddings: "yes" }, 'tie_word_embeddings is "yes"'],
    [{ hidden_act: "gelu" }, 'hidden_act is "gelu"'],
    [{ rope_scaling: { type: "dynamic" } }, 'rotary type is "dynamic"'],
    [{ rope_scaling: { rope_type: "llama3" } }, 'rotary type is "llama3"'],
    [{ rope_parameters: { rope_type: "yarn", rope_theta: 1e4 } }, 'rotary type is "yarn"'],
    [{ mlp_bias: true }, "mlp_bias is true"],
  ];
  for (const [change, message] of faults) {
    assertThrows(() => toSection({ ...config, ...change }), Error, message, JSON.stringify(change));
  }
});

Deno.test("grouped wqkv rows stand by key and value head: its queries, its key, its value", () => {
  const { model } = record("INTERNLM2", { num_kv_attention_heads: 2, no_bias: true });
  const mapping = getModule("INTERNLM2").internEvo!.tensors(model).find(({ tensor }) => /0\..*wqkv/.test(tensor))!;
  const headDim = model.hidden_size / model.num_attention_heads, perGroup = 3;
  const owner = new Map(
    mapping.parts.flatMap(({ parameter, rows }) =>
      rows!.map((row, i) => [row, `${parameter.split(".")[3]}${Math.floor(i / headDim)}.${i % headDim}`] as const)
    ),
  );
  // Row of group g, slot j, channel c: (g * (queries of a group + 2) + j) * head size + c.
  for (let group = 0; group < 2; group++) {
    for (let slot = 0; slot < perGroup + 2; slot++) {
      for (let c = 0; c < headDim; c++) {
        const expected = slot < perGroup
          ? `q${group * perGroup + slot}`
          : slot === perGroup
          ? `k${group}`
          : `v${group}`;
        assertEquals(owner.get((group * (perGroup + 2) + slot) * headDim + c), `${expected}.${c}`);
      }
    }
  }
});
