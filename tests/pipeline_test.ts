/**
 * Pipelines in one thread: 2, 4 and 8 stages in every schedule, with tied and untied heads, uneven layers and packed data,
 * each equal to one rank; and two reference trainings, followed by stages.
 */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import { beginCheckpoint, commitCheckpoint, openCheckpoint, writeShard } from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import type { MicroBatch } from "../src/data/mod.ts";
import { simulate } from "../src/pipeline/simulate.ts";
import { solo, type World } from "../src/parallel/world.ts";
import { drawnMicroBatch, openTrainer, takeStep, tinyRecord } from "../src/train/_testing.ts";
import { globalTensors, loadTensors, shardEntries } from "../src/train/checkpoint.ts";
import type { Trainer } from "../src/train/trainer.ts";
import { verify } from "../src/train/verify.ts";
import { goldenPath } from "./golden_dir.ts";
import { together } from "./worlds.ts";

type Sections = Parameters<typeof tinyRecord>[0] & object;

interface Layout {
  readonly what: string;
  readonly ranks: number;
  readonly pipeline: Record<string, unknown>;
  readonly model?: Record<string, unknown>;
  readonly microBatches?: number;
  readonly family?: string;
}
const interleaved = (overlap: boolean) => ({ interleaved_overlap: overlap });
const layouts: readonly Layout[] = [
  { what: "2 stages, 1F1B", ranks: 2, pipeline: { size: 2 } },
  { what: "4 stages, 1F1B, fewer micro-batches than stages", ranks: 4, pipeline: { size: 4 }, microBatches: 3 },
  { what: "8 stages, 1F1B", ranks: 8, pipeline: { size: 8 } },
  { what: "4 stages of 2 chunks", ranks: 4, pipeline: { size: 4, ...interleaved(true) }, model: { num_chunks: 2 } },
  {
    what: "2 stages of 2 chunks, messages not overlapped",
    ranks: 2,
    pipeline: { size: 2, ...interleaved(false) },
    model: { num_chunks: 2 },
  },
  {
    what: "2 stages of 4 chunks, recomputed, a tied head",
    ranks: 2,
    pipeline: { size: 2, ...interleaved(true) },
    model: { num_chunks: 4, checkpoint: 0.5, tie_word_embeddings: true },
  },
  { what: "4 stages, ZB-H1", ranks: 4, pipeline: { size: 4, mode: "ZBH1" } },
  {
    what: "2 stages, ZB-H1, a tied head, recomputed",
    ranks: 2,
    pipeline: { size: 2, schedule: "zbh1" },
    model: { tie_word_embeddings: true, checkpoint: 1 },
  },
  { what: "3 stages, layers dealt out unevenly", ranks: 3, pipeline: { size: 3 } },
  { what: "2 stages, dropout", ranks: 2, pipeline: { size: 2 }, model: { drop_rate: 0.2 } },
  { what: "2 stages, biases and as many key heads", ranks: 2, pipeline: { size: 2 }, family: "INTERNLM" },
  {
    what: "2 replicas of 2 stages, a tied head",
    ranks: 4,
    pipeline: { size: 2 },
    model: { tie_word_embeddings: true },
  },
];

const steps = 10;

function recordOf({ pipeline, model, microBatches = 4, family }: Partial<Layout>, ranks: number): ResolvedConfig {
  const replicas = ranks / Number(pipeline?.size ?? 1);
  return tinyRecord(
    {
      ...(family && { model_type: family }),
      model: { num_layers: 8, ...(family === "INTERNLM" && { num_kv_attention_heads: 3, no_bias: false }), ...model },
      data: { micro_num: microBatches / replicas },
      parallel: pipeline ? { pipeline } : {},
    } as Sections,
    { worldSize: ranks },
  );
}

/** Packed rows: each micro-batch of a step is cut in segments of its own. */
const batchOf = (step: number, count: number): MicroBatch[] =>
  Array.from(
    { length: count },
    (_, index) => drawnMicroBatch(`${step} ${index}`, index % 2 === 0 ? [4, 3, 2] : [9], { ignored: 4 }),
  );

/** Losses and gradient norms of ten steps, then the loss and the first logits of an evaluation. */
async function curve(config: ResolvedConfig, world: World, microBatches: number) {
  using backend = await openBackend("cpu");
  using trainer = await openTrainer(config, backend, world);
  const { memory, stage } = trainer.model;
  assertEquals(backend.allocatedBytes, memory.total, "what a stage holds is what was planned, to the byte");
  const replica = world.mesh.index("data"), own = microBatches / world.mesh.size("data");
  const losses: number[] = [], norms: number[] = [];
  for (let step = 0; step < steps; step++) {
    const batch = batchOf(step, microBatches).slice(replica * own, (replica + 1) * own);
    const { loss, gradNorm, success } = await takeStep(trainer, batch);
    assert(success);
    losses.push(loss);
    norms.push(gradNorm);
  }
  const { sent } = trainer, evaluated = await trainer.evaluate(batchOf(99, 3), { logits: true });
  const logits = evaluated.microBatches.flatMap(({ logits }) => [...logits!.slice(0, 17)]);
  return { losses, norms, evaluation: evaluated.loss, logits, sent, stage };
}

for (const layout of layouts) {
  Deno.test(`a pipeline equals one rank: ${layout.what}`, async () => {
    const { ranks, microBatches = 4 } = layout;
    const { mode: _, pipeline: __, model, ...rest } = { mode: undefined, ...layout };
    const { num_chunks: ___, ...single } = { num_chunks: 1, ...model };
    const expected = await curve(recordOf({ ...rest, model: single }, 1), solo, microBatches);
    const config = recordOf(layout, ranks);
    const results = await together(ranks, (worldOf) => curve(config, worldOf(config), microBatches));
    for (const { losses, norms } of results) {
      losses.forEach((loss, step) => assertAlmostEquals(loss, expected.losses[step]!, 2e-4, `loss of step ${step}`));
      norms.forEach((norm, step) => assertAlmostEquals(norm / expected.norms[step]!, 1, 1e-3, `norm of step ${step}`));
      assertEquals([losses, norms], [results[0]!.losses, results[0]!.norms], "all ranks come to the same");
    }
    const last = results.at(-1)!;
    assertAlmostEquals(last.evaluation, expected.evaluation, 2e-4);
    assertEquals(last.logits.length, expected.logits.length);
    last.logits.forEach((logit, index) => assertAlmostEquals(logit, expected.logits[index]!, 1e-3));

    // Every piece of the model but the last hands on its output, every one but the first the gradient of its input.
    const stages = Number(layout.pipeline.size), chunks = Number(model?.num_chunks ?? 1);
    const perReplica = microBatches / (ranks / stages), bytes = 9 * 12 * 4; // tokens, width, float32
    results.forEach(({ sent, stage }, rank) => {
      const place = Math.floor(rank / (ranks / stages));
      const messages = perReplica * (2 * chunks - (place === 0 ? 1 : 0) - (place === stages - 1 ? 1 : 0));
      assertEquals(sent, { messages, bytes: messages * bytes });
      const inFlight = layout.pipeline.mode ? stages : stages - place;
      if (chunks === 1 && !layout.pipeline.schedule) assertEquals(stage.frames, [Math.min(inFlight, perReplica)]);
      const tied = model?.tie_word_embeddings === true && (place === 0 || place === stages - 1);
      assertEquals(stage.shared.length, tied ? 1 : 0);
    });
  });
}

const golden: [string, number, string[]][] = [
  ["llama_deep_accum8", 4, [
    "parallel.pipeline.size=4",
    "model.num_chunks=2",
    "parallel.pipeline.interleaved_overlap=true",
  ]],
  ["gemma", 2, ["parallel.pipeline.size=2", "parallel.pipeline.mode=ZBH1"]],
];
for (const [name, ranks, set] of golden) {
  Deno.test(`${ranks} stages follow hf/${name}: ${set.at(-1)}`, async () => {
    const [first, ...others] = await together(ranks, async (world) => {
      using backend = await openBackend("cpu");
      return await verify(goldenPath("hf", name), { backend, nproc: ranks, world, set });
    });
    assert(first!.pass, JSON.stringify(first));
    for (const report of others) assertEquals(report, first, "all ranks come to the same");
  });
}

for (
  const [name, layout] of [
    ["1F1B", { pipeline: { size: 4 } }],
    ["interleaved", { pipeline: { size: 4, ...interleaved(true) }, model: { num_chunks: 2 } }],
    ["ZB-H1", { pipeline: { size: 4, mode: "ZBH1" } }],
  ] as const
) {
  Deno.test(`4 stages do what the picture of ${name} shows, pass by pass`, async () => {
    const config = recordOf({ ...layout, microBatches: 8 }, 4);
    const stages = await together(4, async (worldOf) => {
      using backend = await openBackend("cpu");
      using trainer = await openTrainer(config, backend, worldOf(config));
      const { program, stage } = trainer.model, done: string[] = [], run = program.run.bind(program);
      program.run = (segment, frame) => {
        done.push(`${segment}, frame ${frame}`);
        return run(segment, frame);
      };
      await takeStep(trainer, batchOf(0, 8));
      return { done, schedule: stage.schedule(8) };
    });
    const { runs } = simulate(stages.map(({ schedule }) => schedule), { run: () => 1 });
    stages.forEach(({ done }, stage) => {
      const drawn = runs.filter((run) => run.stage === stage);
      assertEquals(done, drawn.map(({ segment, chunk, frame }) => `${segment} ${chunk}, frame ${frame}`));
    });
  });
}

Deno.test("a checkpoint of a pipeline loads on any number of stages, and the curve goes on", async () => {
  const folder = await Deno.makeTempDir();
  const train = async (trainer: Trainer, from: number, count: number) => {
    const losses: number[] = [];
    for (let step = from; step < from + count; step++) losses.push((await takeStep(trainer, batchOf(step, 4))).loss);
    return losses;
  };
  const tied = { tie_word_embeddings: true };
  const on = <T>(layout: Partial<Layout>, ranks: number, work: (trainer: Trainer) => Promise<T>) => {
    const config = recordOf({ ...layout, model: { ...layout.model, ...tied } }, ranks);
    return together(ranks, async (worldOf) => {
      using backend = await openBackend("cpu");
      using trainer = await openTrainer(config, backend, worldOf(config));
      return await work(trainer);
    });
  };
  try {
    const directory = await beginCheckpoint(folder, 3);
    const saved = await on({ pipeline: { size: 4 } }, 4, async (trainer) => {
      await train(trainer, 0, 3);
      const writer = trainer.model.world.mesh.rank;
      const shard = await writeShard({ directory, writer, entries: shardEntries(trainer.model) });
      const state = trainer.state();
      return { shard, state, tensors: globalTensors(trainer.model), losses: await train(trainer, 3, 3) };
    });
    const { tensors, losses, state } = saved[0]!;
    const shards = saved.map(({ shard }) => shard);
    await commitCheckpoint({ directory, step: 3, shards, tensors, layout: {}, state: {}, config: "" });
    for (const layout of [{}, { pipeline: { size: 2, ...interleaved(true) }, model: { num_chunks: 2 } }]) {
      const ranks = "pipeline" in layout ? 2 : 1;
      const goneOn = await on(layout, ranks, async (trainer) => {
        using checkpoint = openCheckpoint(`${folder}/3`);
        loadTensors(trainer.model, checkpoint);
        trainer.loadState(state);
        return await train(trainer, 3, 3);
      });
      for (const each of goneOn) each.forEach((loss, step) => assertAlmostEquals(loss, losses[step]!, 1e-5));
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
