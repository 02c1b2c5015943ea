/** Mixtures of experts across rooms: reference data, bounds on load, checkpoints, types, and what ranks exchange. */
import { assert, assertAlmostEquals, assertEquals, assertRejects } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import {
  beginCheckpoint,
  commitCheckpoint,
  HuggingFaceFolder,
  openCheckpoint,
  writeHuggingFace,
  writeShard,
} from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import { assembleParameters, fromParameters } from "../src/models/convert.ts";
import { getModule } from "../src/models/registry.ts";
import { solo } from "../src/parallel/world.ts";
import { openTrainer, takeStep, tensorsOf } from "../src/train/_testing.ts";
import { globalTensors, loadTensors, shardEntries } from "../src/train/checkpoint.ts";
import { verify } from "../src/train/verify.ts";
import { goldenPath } from "./golden_dir.ts";
import { batchOf, type Division, onWorld, recordOf, type TinyRun, trainSteps } from "./layouts.ts";
import { together } from "./worlds.ts";

const mixtral: TinyRun = {
  model_type: "MIXTRALMOE",
  model: { num_kv_attention_heads: 2, num_experts: 4, top_k: 2, moe_type: "Dropless" },
};
const experts = 4, layers = 2, tokens = 16, hidden = 32, choices = 2;

Deno.test("two ranks of experts follow hf/mixtral", async () => {
  const set = ["parallel.expert.size=2"];
  const [first, other] = await together(2, async (world) => {
    using backend = await openBackend("cpu");
    return await verify(goldenPath("hf", "mixtral"), { backend, nproc: 2, world, set });
  });
  assert(first.pass, JSON.stringify(first));
  assertEquals(other, first, "both ranks come to the same");
});

Deno.test("a rank of experts that more tokens come to than load_bound allows stops the step before anything is updated", async () => {
  const run = mixtral;
  const config = recordOf(run, { ranks: 2, parallel: { expert: { size: 2, load_bound: 1 } } });
  let before: Map<string, Float32Array> | undefined, after: Map<string, Float32Array> | undefined;
  const error = await assertRejects(() =>
    onWorld(config, 2, async (trainer, world) => {
      if (world.mesh.rank === 0) before = await tensorsOf(trainer);
      try {
        // Even shares of a bound of 1 are a matter of luck; ten steps of it are not.
        await trainSteps(trainer, world, run, 0, 10);
      } finally {
        if (world.mesh.rank === 0) {
          after = await tensorsOf(trainer);
          assertEquals(trainer.stepCount, 0, "the first step has come to nothing");
        }
      }
    }), Error);
  assert(/there is room for 32; parallel\.expert\.load_bound 1\.\d/.test(error.message), error.message);
  assertEquals(after, before);
});

Deno.test("a bound that is not passed changes nothing, and takes less memory", async () => {
  const run = mixtral,
    runs = [null, 1.9].map((load_bound) => {
      const config = recordOf(run, { ranks: 2, parallel: { expert: { size: 2, load_bound } } });
      return onWorld(config, 2, async (trainer, world) => {
        const { losses } = await trainSteps(trainer, world, run, 0, 2);
        return { losses, frames: trainer.model.memory.frames };
      });
    });
  const [[free], [bounded]] = await Promise.all(runs);
  assertEquals(bounded.losses, free.losses);
  assert(bounded.frames < free.frames, `${bounded.frames} < ${free.frames}`);
});

Deno.test("ranks exchange the rows of their tokens, and nothing else", async () => {
  const config = recordOf(mixtral, { ranks: 2, parallel: { expert: 2 } });
  const traffic = await onWorld(config, 2, async (trainer, world) => {
    await trainSteps(trainer, world, mixtral, 0, 1);
    return trainer.model.program.traffic;
  });
  // To experts and back, forward and backward, in each layer; a rank's bytes are those of the larger side.
  const row = 4 * hidden, rows = traffic.map((each) => each.find(({ operator }) => operator === "exchange")!);
  for (const { axis, count, bytes } of rows) {
    assertEquals([axis, count], ["expert", 4 * layers]);
    assert(bytes >= count * tokens * choices * row && bytes <= 2 * count * tokens * choices * row && bytes % row === 0);
  }
  for (const each of traffic) {
    const counts = each.find(({ operator }) => operator === "all-to-all");
    assertEquals(counts, { axis: "expert", operator: "all-to-all", count: layers, bytes: layers * experts * 4 });
    assertEquals(each.length, 2);
  }
});

Deno.test("what experts made is read back row by row that there is, whatever there is room for", async () => {
  // A micro-batch of one rank: the other's experts have room for all of its rows too.
  const config = recordOf({ ...mixtral, microBatches: 2 }, { ranks: 2, parallel: { expert: 2 } });
  const ranks = await together(2, async (worldOf) => {
    using backend = await openBackend("cpu");
    const world = worldOf(config), row = 4 * hidden, reads: number[] = [], { readInto } = backend;
    using trainer = await openTrainer(config, backend, world);
    backend.readInto = (ranges, places) => {
      // Rows alone, or with two tables of counts; else a table, or the step's gradients.
      const [{ bytes }] = ranges as [(typeof ranges)[0]];
      if (ranges.length <= 3 && bytes > 4 * experts) reads.push(bytes / row);
      return readInto(ranges, places);
    };
    const [own] = batchOf(mixtral, 0).slice(world.mesh.rank, world.mesh.rank + 1);
    trainer.zeroGrad();
    await trainer.executeSchedule({ microBatches: [own!], globalRows: 2 });
    return reads;
  });
  const sent = tokens * choices;
  // To experts and back, forward and backward, in each layer.
  assertEquals(ranks.map((reads) => reads.length), [4 * layers, 4 * layers]);
  ranks[0]!.forEach((rows, exchange) => {
    const both = [rows, ranks[1]![exchange]!];
    if (exchange % 2 === 0) assertEquals(both, [sent, sent]); // to experts goes what a rank has
    else assertEquals(both[0]! + both[1]!, 2 * sent, "what came from somewhere goes back, and nothing besides");
  });
});

Deno.test("a checkpoint of divided experts loads on any number of ranks, and the curve goes on", async () => {
  const run: TinyRun = { ...mixtral, microBatches: 4 }, folder = await Deno.makeTempDir();
  try {
    const directory = await beginCheckpoint(folder, 3);
    const saved = await onWorld(recordOf(run, { ranks: 2, parallel: { expert: 2 } }), 2, async (trainer, world) => {
      await trainSteps(trainer, world, run, 0, 3);
      await trainer.gather();
      const shard = await writeShard({ directory, writer: world.mesh.rank, entries: shardEntries(trainer.model) });
      const state = trainer.state(), tensors = globalTensors(trainer.model);
      return { shard, state, tensors, losses: (await trainSteps(trainer, world, run, 3, 6)).losses };
    });
    const [{ tensors, state, losses }] = saved, shards = saved.map(({ shard }) => shard);
    await commitCheckpoint({ directory, step: 3, shards, tensors, layout: {}, state: {}, config: "" });
    const others: Division[] = [{ ranks: 1 }, { ranks: 4, parallel: { expert: 4 } }, {
      ranks: 4,
      parallel: { expert: 2 },
    }];
    for (const division of others) {
      const [goneOn] = await onWorld(recordOf(run, division), division.ranks, async (trainer, world) => {
        using checkpoint = openCheckpoint(`${folder}/3`);
        assertEquals(checkpoint.shape("parameter", "layers.0.ffn.experts.gate.weight"), [experts, 64, hidden]);
        loadTensors(trainer.model, checkpoint);
        trainer.loadState(state);
        return (await trainSteps(trainer, world, run, 3, 6)).losses;
      });
      goneOn.forEach((loss, step) => assertAlmostEquals(loss, losses[step], 2e-5, `${division.ranks} ranks, ${step}`));
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

/** Steps of a run on one rank. */
async function alone(run: TinyRun, model: Record<string, unknown>, backendName: "cpu" | "webgpu" = "cpu", steps = 6) {
  using backend = await openBackend(backendName);
  const config = recordOf(run, { ranks: 1, model });
  using trainer = await openTrainer(config, backend);
  const { losses } = await trainSteps(trainer, solo, run, 0, steps);
  await backend.finish();
  return losses;
}

const gates: Record<string, Record<string, unknown>> = {
  "GShard, fused": { moe_type: "GShard", top_k: 3 },
  "GShard, one choice, places by lot": {
    moe_type: "GShard",
    top_k: 1,
    moe_layer_kwargs: { use_fused_gating: false, capacity_factor: 0.7, min_capacity: 1 },
  },
  "GShard, one choice, drawn, nothing dropped": {
    moe_type: "GShard",
    top_k: 1,
    moe_layer_kwargs: { use_fused_gating: false, noisy_gate_policy: "RSample", drop_tokens: false },
  },
  "GShard, a drawn second choice": { moe_type: "GShard", top_k: 2, moe_layer_kwargs: { use_fused_gating: false } },
  "Dropless with a capacity, by probability": { moe_layer_kwargs: { capacity_factor: 0.6, drop_and_pad: true } },
  "Dropless with a capacity, the first": { moe_layer_kwargs: { capacity_factor: 0.6, drop_policy: "position" } },
  "Dropless, weights as they are": { moe_layer_kwargs: { norm_topk_prob: false } },
  "a shared expert": { num_shared_experts: 2 },
};
Deno.test("every gate learns, and draws the same again", async () => {
  const run: TinyRun = { ...mixtral, moeLossCoefficient: 0.01 };
  for (const [name, model] of Object.entries(gates)) {
    const losses = await alone(run, model, "cpu", 14);
    assert(losses.at(-1)! < losses[0] - 0.1, `${name}: ${losses}`);
    assertEquals(await alone(run, model, "cpu", 2), losses.slice(0, 2), name);
  }
});

Deno.test("MegaBlock's kinds are dropless ones with weights as they are, and where room is short the first stay", async () => {
  const asIs = { norm_topk_prob: false }, short = { capacity_factor: 0.6 };
  const dropless = await alone(mixtral, { moe_layer_kwargs: asIs }, "cpu", 2);
  const dropping = await alone(mixtral, { moe_layer_kwargs: { ...asIs, ...short, drop_policy: "position" } }, "cpu", 2);
  assert(dropless[1] !== dropping[1]);
  const megaBlock = (kind: string, moe_layer_kwargs: object) =>
    alone(mixtral, { moe_type: kind, moe_layer_kwargs }, "cpu", 2);
  assertEquals(await megaBlock("MegaBlock-Dropless", {}), dropless);
  assertEquals(await megaBlock("MegaBlock", { drop_tokens: false }), dropless);
  assertEquals(await megaBlock("MegaBlock", short), dropping);
});

Deno.test("a mixture on WebGPU follows the CPU", async () => {
  const model = { ...gates["GShard, one choice, places by lot"], num_shared_experts: 1 };
  const [expected, actual] = [await alone(mixtral, model, "cpu", 2), await alone(mixtral, model, "webgpu", 2)];
  actual.forEach((loss, step) => assertAlmostEquals(loss, expected[step], 2e-4));
});

Deno.test("a mixture in bfloat16 begins as in float32", async () => {
  // Where two experts are nearly alike to the router a choice may fall otherwise: from then on losses part.
  const run: TinyRun = { ...mixtral, moeLossCoefficient: 0.01 };
  const [expected, actual] = [await alone(run, {}, "cpu", 4), await alone(run, { dtype: "bfloat16" }, "cpu", 4)];
  actual.forEach((loss, step) => assertAlmostEquals(loss / expected[step], 1, 0.01));
});

Deno.test("the balance of experts is reported apart, times its coefficient", async () => {
  const reports = [];
  for (const moeLossCoefficient of [0, 0.5, 1]) {
    using backend = await openBackend("cpu");
    const run: TinyRun = { ...mixtral, moeLossCoefficient };
    using trainer = await openTrainer(recordOf(run, { ranks: 1 }), backend);
    reports.push(await takeStep(trainer, batchOf(run, 0)));
  }
  const [none, half, whole] = reports;
  assertEquals(none.moeLoss, 0);
  // 1 a layer where probabilities are even, as they nearly are at first.
  assertAlmostEquals(whole.moeLoss!, layers, 0.1);
  assertAlmostEquals(half.moeLoss!, whole.moeLoss! / 2, 1e-6);
  assertAlmostEquals(whole.loss - whole.moeLoss!, none.loss, 1e-6);
  assert(whole.gradNorm !== none.gradNorm);
});

Deno.test("the gradient of the balance is its slope, where ranks divide a micro-batch's tokens too", async () => {
  const name = "layers.1.ffn.router.weight";
  const measure = (moeLossCoefficient: number, division: Division, move?: Float32Array) => {
    const run: TinyRun = { ...mixtral, model: { ...mixtral.model, drop_rate: 0 }, moeLossCoefficient };
    return onWorld(recordOf(run, division), division.ranks, async (trainer) => {
      const { program } = trainer.model;
      // A router that is sure of its choices: they do not change with a small step.
      const weight = (await program.readParameter("parameter", name)).map((value) => 500 * value);
      program.writeParameter("parameter", name, weight.map((value, i) => value + (move?.[i] ?? 0)));
      trainer.zeroGrad();
      const { moeLoss } = await trainer.executeSchedule({ microBatches: batchOf(run, 0) });
      return { moeLoss: moeLoss!, gradient: await program.readParameter("gradient", name) };
    });
  };
  const divisions: Division[] = [{ ranks: 1 }, {
    ranks: 2,
    parallel: { tensor: { size: 2 }, expert: { size: 2, no_tp: true } },
  }];
  for (const division of divisions) {
    const [[without], [first, second]] = [await measure(0, division), await measure(1, division)];
    if (second) assertEquals(first.moeLoss, second.moeLoss);
    const own = first.gradient.map((value, i) => value - without.gradient[i]);
    const length = Math.hypot(...own), step = 3e-3;
    const [[ahead], [back]] = await Promise.all(
      [step, -step].map((by) => measure(1, division, own.map((value) => by * value / length))),
    );
    assertAlmostEquals((ahead.moeLoss - back.moeLoss) / (2 * step) / length, 1, 0.02, `${division.ranks} ranks`);
  }
});

Deno.test("experts load from tensors of their own, as published, and stacked", async () => {
  const folder = await Deno.makeTempDir(), stacked = goldenPath("hf", "mixtral");
  try {
    using source = HuggingFaceFolder.open(stacked);
    const format = getModule("MIXTRALMOE").huggingFace!;
    const section = recordOf({ model_type: "MIXTRALMOE", model: {} }, { ranks: 1 }).model;
    const model = { ...section, ...format.toSection(source.config) } as ResolvedConfig["model"];
    using backend = await openBackend("cpu");
    const [published] = format.otherTensors!(model);
    const parameters = parametersOf(model, stacked);
    await writeHuggingFace(folder, {
      config: source.config,
      tensors: published.map((mapping) => ({
        name: mapping.tensor,
        dtype: "F32",
        shape: mapping.shape,
        data: () => [fromParameters(mapping, (name) => parameters.get(name)!)],
      })),
    });
    // Norms at the end are told by the names of the stacked tensors; the curve suffices here.
    const curve = JSON.parse(Deno.readTextFileSync(`${stacked}/curve.json`));
    const norms = Object.fromEntries(published.map(({ tensor }) => [tensor, curve.final_param_norms[tensor] ?? 1]));
    await Deno.writeTextFile(
      `${folder}/curve.json`,
      JSON.stringify({ ...curve, steps: curve.steps.slice(0, 2), final_param_norms: norms }),
    );
    const report = await verify(folder, { backend });
    assert(report.maxLossError < 2e-4 && report.maxFirstLogitError < 1e-4, JSON.stringify(report));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

/** Canonical parameters of a folder. */
function parametersOf(
  model: ResolvedConfig["model"],
  folder: string,
): Map<string, Float32Array<ArrayBuffer>> {
  using source = HuggingFaceFolder.open(folder);
  const size = (shape: readonly number[]) => shape.reduce((product, length) => product * length, 1);
  return new Map(
    assembleParameters(
      getModule("MIXTRALMOE").huggingFace!.tensors(model),
      ({ tensor, shape }) => source.readFloat32(tensor, new Float32Array(size(shape))) as Float32Array<ArrayBuffer>,
    ),
  );
}
