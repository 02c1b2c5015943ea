import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { openBackend } from "../backend/open.ts";
import { openTrainer, tinyRecord } from "./_testing.ts";
import { wireBytes } from "./charge.ts";
import { devices, links } from "./hardware.ts";
import { predict } from "./predict.ts";
import { layoutsOf, search } from "./search.ts";

const machines = (world: number) => ({ world, device: devices.h200!, link: links["100GbE"]! });

const shapes = { "124M": [12, 768, 12], "350M": [24, 1024, 16], "1.3B": [24, 2048, 16] } as const;

/** A model of `docs/speed.md`. */
const measured = (model: keyof typeof shapes, rows: number, tokens: number, runtime = "deno", dtype = "float32") => {
  const [num_layers, hidden_size, num_attention_heads] = shapes[model];
  return resolveConfig({
    model_type: "INTERNLM2",
    model: {
      num_layers,
      hidden_size,
      num_attention_heads,
      dtype,
      vocab_size: 50304,
      mlp_ratio: 8 / 3,
      multiple_of: 256,
      no_bias: true,
    },
    data: { seq_len: tokens, micro_bsz: rows, micro_num: 1, total_steps: 10 },
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
    runtime: { webgpu: runtime },
  });
};
const benchmark = measured("124M", 4, 1024);

Deno.test("predict() comes within 15 % of what one H200 was measured to do", () => {
  // Tokens a second in docs/speed.md; half types' rates come from the 124M model at 4 x 1024.
  const figures: [ResolvedConfig, number][] = [
    [benchmark, 42_430],
    [measured("124M", 2, 2048), 38_023],
    [measured("350M", 4, 1024), 15_049],
    [measured("1.3B", 4, 1024), 4_608],
    [measured("124M", 4, 1024, "dawn", "float16"), 148_400],
    [measured("350M", 4, 1024, "dawn", "float16"), 60_370],
  ];
  for (const [config, figure] of figures) {
    const { tokensPerSecond, fits, bubble } = predict(config, machines(1));
    assert(Math.abs(tokensPerSecond / figure - 1) < 0.15, `${tokensPerSecond} tokens a second, measured ${figure}`);
    assertEquals([fits, bubble], [true, 0]);
  }
});

const pipelined = (changes: Record<string, Record<string, unknown>>, worldSize = 4): ResolvedConfig =>
  tinyRecord({ ...changes, model: { num_layers: 8, ...changes.model }, data: { micro_num: 8, ...changes.data } }, {
    worldSize,
  });

Deno.test("predict() gives each stage the memory that a run takes, to the byte", async () => {
  const config = pipelined({ parallel: { pipeline: { size: 1 } } }, 1);
  using backend = await openBackend("cpu");
  using _trainer = await openTrainer(config, backend);
  assertEquals(predict(config, machines(1)).memory, backend.allocatedBytes);
});

Deno.test("predict() counts what closed formulas say that ranks send", () => {
  const bytes = 9 * 12 * 4, microBatches = 8; // a micro-batch of 9 tokens, 12 wide
  const stages = predict(pipelined({ parallel: { pipeline: { size: 4 } } }), machines(4));
  assertEquals(stages.traffic, { pipeline: 2 * microBatches * bytes }, "both ways in the middle");

  const replicas = predict(pipelined({ parallel: { zero1: { size: 1 } } }), machines(4));
  const parameters = replicas.parameters * 4;
  assertAlmostEquals(replicas.traffic.data!, 2 * parameters * 3 / 4, 1, "a ring all-reduce of all gradients");
  const divided = predict(pipelined({}), machines(4));
  assertAlmostEquals(divided.traffic.data!, 2 * parameters * 3 / 4, 1, "a reduce-scatter, and an all-gather");

  assertEquals(wireBytes("all-reduce", 4, 100), 150);
  assertEquals(wireBytes("all-to-all", 4, 100), 75);
});

Deno.test("predict() shows a smaller bubble for ZB-H1 and for chunks, and a slower step over a slower link", () => {
  const of = (pipeline: Record<string, unknown>, model: Record<string, unknown> = {}, link = links["100GbE"]!) => {
    const { model_type, data, adam, ckpt } = benchmark;
    const config = resolveConfig({
      model_type,
      model: { ...benchmark.model, num_layers: 8, ...model },
      data: { seq_len: data.seq_len, micro_bsz: 1, micro_num: 16, total_steps: 1 },
      adam,
      ckpt: { enable_save_ckpt: ckpt.enable_save_ckpt },
      parallel: { pipeline: { size: 4, ...pipeline } },
    }, { worldSize: 4 });
    return predict(config, { ...machines(4), link, perHost: 1 });
  };
  const plain = of({}), zeroBubble = of({ mode: "ZBH1" });
  const chunks = of({ interleaved_overlap: true }, { num_chunks: 2 });
  assert(zeroBubble.bubble < plain.bubble, `${zeroBubble.bubble} and ${plain.bubble}`);
  assert(chunks.bubble < plain.bubble, `${chunks.bubble} and ${plain.bubble}`);
  assert(of({}, {}, links["1GbE"]!).step > plain.step);
});

Deno.test("search() ranks the layouts that fit, keeps the global batch, and says why others were not tried", () => {
  const base = pipelined({}, 4);
  const resolve = (set: readonly string[]) => {
    const fields = Object.fromEntries(set.map((change) => change.split("="))) as Record<string, string>;
    return pipelined({
      parallel: {
        tensor: { size: Number(fields["parallel.tensor.size"]) },
        pipeline: {
          size: Number(fields["parallel.pipeline.size"]),
          schedule: fields["parallel.pipeline.schedule"],
          interleaved_overlap: true,
        },
      },
      model: { num_chunks: Number(fields["model.num_chunks"]), checkpoint: Number(fields["model.checkpoint"] ?? 0) },
      data: { micro_num: Number(fields["data.micro_num"]) },
    });
  };
  const sets = layoutsOf(base, { world: 4 });
  const least = Math.min(...search(sets, machines(4), { resolve }).fitting.map(({ prediction }) => prediction.memory));
  const device = { ...devices.h200!, memory: 1.05 * least };
  const { fitting, tooLarge, refused } = search(sets, { ...machines(4), device }, { resolve });
  assert(fitting.length > 0 && tooLarge.length > 0, `${fitting.length} fit, ${tooLarge.length} do not`);
  assert(refused.length <= sets.length);
  const speeds = fitting.map(({ prediction }) => prediction.tokensPerSecond);
  assertEquals(speeds, speeds.toSorted((a, b) => b - a));
  for (const { config, prediction } of [...fitting, ...tooLarge]) {
    const { pipeline, tensor } = config.parallel, replicas = 4 / (pipeline.size * tensor.size);
    assertEquals(config.data.micro_num * replicas, 32);
    assertEquals(prediction.fits, prediction.memory <= device.memory);
    if (!prediction.fits) assertEquals(config.model.checkpoint, 1, "recomputation was tried");
  }
});

Deno.test("devices say where their figures come from, and those that were not measured keep to what an H200 reached", () => {
  for (const [name, { source, matmul, bandwidth }] of Object.entries(devices)) {
    assertEquals(/^measured/.test(source), name === "h200", source);
    assert(matmul / bandwidth > 5 && matmul / bandwidth < 120, `${name}: operations a byte`);
  }
  const { h100, h200 } = devices;
  assertEquals(h100!.matmul, h200!.matmul, "the same chip");
  assertAlmostEquals(h100!.bandwidth / h200!.bandwidth, 3.35 / 4.8, 1e-12);
});

Deno.test("predict() refuses sizes that do not fit the world", () => {
  assertThrows(() => predict(pipelined({ parallel: { pipeline: { size: 4 } } }), machines(6)), RangeError, "6 ranks");
});
