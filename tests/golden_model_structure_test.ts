/** Names, shapes and initial weights of the families against InternEvo's (`internevo/models/model_structure.json`). */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { openNullBackend } from "../src/backend/null/backend.ts";
import { resolveConfig } from "../src/config/mod.ts";
import { elementCount } from "../src/graph/graph.ts";
import { fromParameters } from "../src/models/convert.ts";
import { getModule } from "../src/models/registry.ts";
import { initialTensor } from "../src/nn/random.ts";
import { roundedFfnSize } from "../src/nn/settings.ts";
import { singleRank } from "../src/parallel/mesh.ts";
import { runMesh } from "../src/parallel/run_mesh.ts";
import { partitionLayers } from "../src/parallel/stages.ts";
import { planModel } from "../src/train/model.ts";
import { readGoldenJson } from "./golden_dir.ts";
import { messageOf, skip } from "./skip.ts";

type Config = Record<string, unknown>;
interface Structure {
  model_type: string;
  config: Config;
  params: Record<string, number[]>;
}
const golden = readGoldenJson<{
  structure: Structure[];
  structure_moe: Structure[];
  shards: {
    model_type: string;
    config: Config;
    tensor: { size: number; mode: string };
    weight_size: number;
    rank_in_group: number;
    params: Record<string, number[]>;
  }[];
  pipeline_param_names: {
    model_type: string;
    num_layers: number;
    pipeline: number;
    chunks: number;
    stages: { params: string[] }[];
  }[];
  mlp_hidden_rounding: { columns: string[]; rows: number[][] };
  init_std: { model_type: string; config: Config; measured_std_and_absmax: Record<string, [number, number]> }[];
}>("internevo", "models", "model_structure.json");

const recordOf = (model_type: string, model: Config) =>
  resolveConfig({
    model_type,
    model,
    data: { seq_len: 4, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
  });

/** Parameters of the traced model, and how InternEvo's tensors are made of them. */
function modelOf(model_type: string, config: Config) {
  const record = recordOf(model_type, config);
  using backend = openNullBackend();
  const { plan } = planModel(record, backend.traits, singleRank);
  return {
    record,
    parameters: new Map(plan.parameters.map((parameter) => [parameter.name, parameter])),
    mappings: getModule(model_type).internEvo!.tensors(record.model),
  };
}

const structures = (["structure", "structure_moe"] as const)
  .flatMap((list) => golden[list].map((entry, index) => ({ ...entry, title: `${list}[${index}]` })));
structures.forEach(({ model_type, config, params, title: place }) => {
  const title = `${model_type} has the tensors of model_structure.json ${place}`;
  const reason = messageOf(() => recordOf(model_type, config));
  if (reason) return skip(title, reason);
  // Only 0.3.4 gives a table that is split by words a name of its own.
  const expected = Object.entries(params).map(([name, shape]) => [name.replace(".word_embeddings.", "."), shape]);
  Deno.test(title, () => {
    const { mappings, parameters } = modelOf(model_type, config);
    assertEquals(
      Object.fromEntries(mappings.map(({ tensor, shape }) => [tensor, shape])),
      Object.fromEntries(expected),
    );
    // Every parameter of the model is in exactly one tensor, or one of many experts in each, and its rows fill it.
    const parts = mappings.flatMap((mapping) => mapping.parts);
    for (const name of parameters.keys()) {
      const own = parts.filter(({ parameter }) => parameter === name), count = own[0]?.slice?.of ?? 1;
      assertEquals(own.map(({ slice }) => slice?.index ?? 0), Array.from({ length: count }, (_, i) => i), name);
    }
    assertEquals(new Set(parts.map(({ parameter }) => parameter)).size, parameters.size);
    for (const { tensor, shape, parts } of mappings) {
      const elements = parts.reduce(
        (sum, { parameter, slice }) => sum + elementCount(parameters.get(parameter)!.shape) / (slice?.of ?? 1),
        0,
      );
      assertEquals(elements, elementCount(shape), tensor);
    }
  });
});

Deno.test("roundedFfnSize() follows model_structure.json mlp_hidden_rounding", () => {
  for (const [hidden, ratio, , expected] of golden.mlp_hidden_rounding.rows) {
    assertEquals(roundedFfnSize(hidden, ratio, 256), expected, `hidden_size ${hidden}, mlp_ratio ${ratio}`);
  }
});

golden.init_std.forEach(({ model_type, config, measured_std_and_absmax }, index) => {
  const title = `${model_type} starts as model_structure.json init_std[${index}]`;
  const reason = messageOf(() => recordOf(model_type, config));
  if (reason) return skip(title, reason);
  Deno.test(title, () => {
    const { record, mappings, parameters } = modelOf(model_type, config);
    for (const mapping of mappings) {
      const values = fromParameters(mapping, (name) => {
        const { initialization, shape } = parameters.get(name)!;
        return initialTensor(initialization, { seed: record.runtime.seed, name, length: elementCount(shape) });
      });
      const [std, absmax] = measured_std_and_absmax[mapping.tensor];
      const measured = deviation(values), largest = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      if (std === 0) {
        assertEquals([measured, largest], [0, absmax], mapping.tensor);
        assert(values.every((value) => value === absmax), mapping.tensor);
        continue;
      }
      // A measured deviation itself deviates by 1/√(2n), as does the reference's, which is written with six decimals.
      assertAlmostEquals(measured, std, 6 * std / Math.sqrt(values.length) + 1e-6, `deviation of ${mapping.tensor}`);
      if (config.init_type === "uniform") {
        // Draws fill the interval to its ends, and never leave it.
        assertAlmostEquals(largest, absmax, 20 * absmax / values.length + 1e-6, `largest of ${mapping.tensor}`);
        assert(largest <= Math.sqrt(3) * std * (1 + 4 / Math.sqrt(values.length)), `largest of ${mapping.tensor}`);
      } else assert(largest > std && largest < 7 * std, `largest of ${mapping.tensor}: ${largest}`);
    }
  });
});

function deviation(values: Float32Array): number {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}

golden.shards.forEach(({ model_type, config, tensor, weight_size, rank_in_group, params }, index) => {
  Deno.test(`ranks of ${model_type} hold the shards of model_structure.json shards[${index}]`, () => {
    const world = Math.max(tensor.size, weight_size), isp = tensor.mode === "isp";
    const record = resolveConfig({
      model_type,
      model: config,
      data: { seq_len: 8, micro_bsz: 1, total_steps: 1 },
      adam: { lr: 1e-3 },
      parallel: { tensor, weight: { size: weight_size } },
      ckpt: { enable_save_ckpt: false },
    }, { worldSize: world });
    using backend = openNullBackend();
    const { boxes } = planModel(record, backend.traits, runMesh(record, { rank: rank_in_group, world }));
    for (const { tensor: name, parts, shape: whole } of getModule(model_type).internEvo!.tensors(record.model)) {
      const extents = parts.map(({ parameter }) => boxes.get(parameter)!.extent);
      const held = [extents.reduce((rows, extent) => rows + extent[0]!, 0), ...extents[0]!.slice(1)];
      if (/embedding|^head|^output/.test(name) && isp) {
        // 0.3.4 divides the table and the head over tensor ranks; 0.5.3, as here, over weight ranks.
        assertEquals(held, [whole[0]! / weight_size, whole[1]!], name);
      } else if (name.endsWith("out_proj.bias")) {
        // Here every rank has it whole: InternEvo has it on the first rank, or divided under isp.
        assertEquals(held, whole, name);
      } else assertEquals(held, params[name], name);
    }
  });
});

golden.pipeline_param_names.forEach(({ model_type, num_layers, pipeline, chunks, stages }, index) => {
  const what = `stages of ${model_type} hold the tensors of model_structure.json pipeline_param_names[${index}]`;
  Deno.test(what, () => {
    const plainHeads = model_type === "INTERNLM" ? {} : { num_kv_attention_heads: 2, no_bias: true };
    const record = resolveConfig({
      model_type,
      model: { num_layers, hidden_size: 16, num_attention_heads: 4, vocab_size: 32, num_chunks: chunks, ...plainHeads },
      data: { seq_len: 4, micro_bsz: 1, micro_num: pipeline, total_steps: 1 },
      adam: { lr: 1e-3 },
      parallel: { pipeline },
      ckpt: { enable_save_ckpt: false },
    }, { worldSize: pipeline });
    const layers = partitionLayers(num_layers, { stages: pipeline, chunks });
    using backend = openNullBackend();
    for (const [stage, { params }] of stages.entries()) {
      const { boxes } = planModel(record, backend.traits, runMesh(record, { rank: stage, world: pipeline }));
      const held = getModule(model_type).internEvo!.tensors(record.model)
        .filter(({ parts }) => parts.some(({ parameter }) => boxes.has(parameter)))
        .map(({ tensor }) => {
          const [, before, layer] = tensor.match(/^(.*?\b(?:layers|blocks)\.)(\d+)/) ?? [];
          if (before === undefined) {
            const chunk = tensor.startsWith("tok_embeddings") || tensor.startsWith("embedding") ? 0 : chunks - 1;
            return chunks === 1 ? tensor : `${chunk}.${tensor}`;
          }
          // InternEvo counts the layers of each chunk from 0.
          const chunk = layers[stage]!.findIndex(({ first, end }) => first <= Number(layer) && Number(layer) < end);
          const local = tensor.replace(before + layer, before + (Number(layer) - layers[stage]![chunk]!.first));
          return chunks === 1 ? local : `${chunk}.${local}`;
        });
      assertEquals(held.sort(), [...params].sort(), `stage ${stage}`);
    }
  });
});
