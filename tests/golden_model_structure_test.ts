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
  shards: unknown[];
  pipeline_param_names: unknown[];
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

golden.structure.forEach(({ model_type, config, params }, index) => {
  const title = `${model_type} has the tensors of model_structure.json structure[${index}]`;
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
    // Every parameter of the model is in exactly one tensor, and its rows fill the tensor.
    const parts = mappings.flatMap((mapping) => mapping.parts.map((part) => part.parameter));
    assertEquals(parts.toSorted(), [...parameters.keys()].sort());
    for (const { tensor, shape, parts } of mappings) {
      const elements = parts.reduce((sum, { parameter }) => sum + elementCount(parameters.get(parameter)!.shape), 0);
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

if (golden.structure_moe.length > 0) skip("structure_moe of model_structure.json", "there are no experts yet");
if (golden.shards.length > 0) skip("shards of model_structure.json", "Troupe trains on one rank yet");
if (golden.pipeline_param_names.length > 0) {
  skip("pipeline_param_names of model_structure.json", "Troupe trains in one stage yet");
}
