import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertLess,
  assertRejects,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { decode, encode } from "../../kernels/host.ts";
import { openBackend } from "../backend/open.ts";
import { firstReads } from "../graph/gradient_order.ts";
import { openNullBackend } from "../backend/null/backend.ts";
import { abandonCheckpoint, beginCheckpoint, commitCheckpoint, openCheckpoint, writeShard } from "../checkpoint/mod.ts";
import { createCommunicator } from "../comm/collectives/communicator.ts";
import { simulatedWorld } from "../comm/transport/simulated.ts";
import { ConfigError, type ResolvedConfig } from "../config/mod.ts";
import { adamwBytes } from "../optimizer/adamw.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { createWorld, type World } from "../parallel/world.ts";
import { drawnMicroBatch, takeStep, tensorsOf, tinyRecord } from "./_testing.ts";
import { globalTensors, loadTensors, shardEntries } from "./checkpoint.ts";
import { estimateHostMemory } from "./host_memory.ts";
import { initializeOptimizer, initializeTrainer } from "./initialize.ts";
import { initializeModel, planModel, prefetchOf } from "./model.ts";
import type { Trainer } from "./trainer.ts";

const lengths = [[9], [4, 5], [2, 7], [1, 8], [3, 3, 3], [9]];
const batch = lengths.map((each, index) => drawnMicroBatch(`row ${index}`, each, { ignored: 4 }));

async function together<T>(
  config: ResolvedConfig,
  ranks: number,
  work: (trainer: Trainer, world: World) => Promise<T>,
  /** Ranks that use one GPU. */
  sharing: readonly number[] = [],
): Promise<T[]> {
  const transports = simulatedWorld(ranks);
  try {
    return await Promise.all(transports.map(async (transport, rank) => {
      const communicator = { ...createCommunicator(transport), sharing: sharing.includes(rank) ? sharing : [] };
      const world = createWorld(runMesh(config, { rank, world: ranks }), communicator);
      try {
        using cpu = await openBackend("cpu");
        // As a GPU, which several ranks may share.
        const backend: typeof cpu = Object.create(cpu, { traits: { value: { ...cpu.traits, software: false } } });
        const model = await initializeModel(config, { backend, world });
        using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
        return await work(trainer, world);
      } catch (error) {
        transport.abort((error as Error).message);
        throw error;
      }
    }));
  } finally {
    await Promise.all(transports.map((transport) => transport.close()));
  }
}

const record = (zero: Record<string, unknown> = {}, size = -1, ranks = 1, dtype = "float32") =>
  tinyRecord({
    model: { dtype },
    data: { micro_num: 6 },
    hybrid_zero_optimizer: { clip_grad_norm: 0.5, ...zero },
    parallel: { zero1: { size } },
  }, { worldSize: ranks });

/** Two steps on one global batch dealt out in turn. */
async function twoSteps(trainer: Trainer, { mesh }: World, rows = batch) {
  const own = rows.filter((_, index) => index % mesh.size("data") === mesh.index("data"));
  const results = [];
  for (let step = 0; step < 2; step++) {
    trainer.zeroGrad();
    const { loss } = await trainer.executeSchedule({ microBatches: own, globalRows: rows.length });
    const { gradNorm, success } = await trainer.step();
    results.push({ loss, gradNorm, success });
  }
  await trainer.gather();
  return { results, parameters: await tensorsOf(trainer) };
}

Deno.test("data-parallel ranks take the steps of one rank, however they divide the optimizer's state", async () => {
  const [alone] = await together(record(), 1, twoSteps);
  const zero = { reduce_bucket_size: 150, all_gather_size: 700 };
  const ways: [number, number, Record<string, unknown>][] = [
    [2, 1, zero],
    [3, -1, zero],
    [4, 2, { ...zero, overlap_sync_param: true }],
    [4, -1, { ...zero, use_split_tensor_optim: true }],
    [8, -1, { overlap_sync_param: true }], // two have no rows at all
  ];
  for (const [ranks, size, options] of ways) {
    const all = await together(record(options, size, ranks), ranks, twoSteps);
    for (const one of all) assertEquals(one, all[0], `${ranks} ranks agree to the bit`);
    alone!.results.forEach(({ loss, gradNorm }, step) => {
      assertAlmostEquals(all[0]!.results[step]!.loss, loss, 1e-5, `${ranks} ranks, loss ${step}`);
      assertAlmostEquals(all[0]!.results[step]!.gradNorm, gradNorm, 1e-5 * gradNorm, `${ranks} ranks, norm ${step}`);
    });
  }
});

Deno.test("data-parallel ranks in float16 agree to the bit, read what others updated, and skip an overflow together", async () => {
  const half = (ranks: number, scale: number, overlap = {}) =>
    tinyRecord({
      model: { dtype: "float16", hidden_size: 48, head_dim: 16 }, // parameters of several parts
      data: { micro_num: 6 },
      grad_scaler: { fp16: { initial_scale: scale } },
      hybrid_zero_optimizer: { use_split_tensor_optim: true, ...overlap },
      adam: { lr: 1e-3 },
    }, { worldSize: ranks });
  const [alone] = await together(half(1, 2 ** 12), 1, twoSteps);
  const all = await together(half(3, 2 ** 12), 3, twoSteps);
  for (const one of all) assertEquals(one, all[0]);
  assertEquals(await together(half(3, 2 ** 12, { overlap_sync_param: true }), 3, twoSteps), all);
  // The second loss is of parameters that the other ranks updated, as the passes read them.
  for (const [step, { loss, success }] of all[0]!.results.entries()) {
    assertEquals(success, true);
    assertAlmostEquals(loss, alone!.results[step]!.loss, 1e-4);
  }
  for (const { results } of await together(half(3, 2 ** 24), 3, twoSteps)) {
    assertEquals(results.map(({ success }) => success), [false, false]);
  }
});

Deno.test("gradients travel in a half type where that is asked for: the steps are nearly those of float32", async () => {
  const zero = { reduce_bucket_size: 150, use_split_tensor_optim: true };
  const [exact] = await together(record(zero, -1, 3), 3, twoSteps);
  for (const [dtype, tolerance] of [["float16", 1e-3], ["bfloat16", 8e-3]] as const) {
    const half = { ...zero, reduce_comm_dtype: dtype };
    const all = await together(record(half, -1, 3), 3, twoSteps);
    for (const one of all) assertEquals(one, all[0], "ranks agree to the bit");
    assertEquals(await together(record({ ...half, overlap_sync_grad: true }, -1, 3), 3, twoSteps), all);
    const [{ gradNorm, loss }, second] = all[0]!.results as [typeof all[0]["results"][0], typeof all[0]["results"][0]];
    assertEquals(loss, exact!.results[0]!.loss, "the first loss has seen no exchange");
    assert(gradNorm !== exact!.results[0]!.gradNorm, "rounded");
    assertAlmostEquals(gradNorm, exact!.results[0]!.gradNorm, tolerance * gradNorm);
    assertAlmostEquals(second.loss, exact!.results[1]!.loss, tolerance);
    // Where the state is divided over fewer ranks, all of them get the sums.
    const [four, ...others] = await together(record(half, 2, 4), 4, twoSteps);
    for (const one of others) assertEquals(one, four);
    assertAlmostEquals(four!.results[0]!.gradNorm, gradNorm, tolerance * gradNorm);
  }
});

Deno.test("in a half type a rank keeps masters and moments of what it updates alone, and fetches what the passes read", async () => {
  for (const [size, split] of [[1, false], [2, false], [-1, true]] as const) {
    const config = tinyRecord({
      model: { dtype: "bfloat16", hidden_size: 48, head_dim: 16 },
      use_fp32_norm: true,
      data: { micro_num: 6 },
      hybrid_zero_optimizer: { use_split_tensor_optim: split },
      parallel: { zero1: { size } },
    }, { worldSize: 4 });
    const masters = await together(config, 4, async (trainer, world) => {
      const { program, zero, memory } = trainer.model, { backend, plan } = program, { mesh } = world;
      const owned = zero.flatMap(({ division }) => division.filter(({ owner }) => owner === mesh.index("zero")));
      const bytesOf = (parts: readonly { begin: number; end: number }[]) =>
        parts.reduce((sum, { begin, end }) => sum + Math.ceil(4 * (end - begin) / plan.alignment) * plan.alignment, 0);
      const all = bytesOf(plan.parameters.map(({ bytes }) => ({ begin: 0, end: bytes / 4 })));
      const exact = plan.parameters.filter(({ name }) => name.includes("norm"));
      const kept = bytesOf(exact.map(({ bytes }) => ({ begin: 0, end: bytes / 4 })));
      assertEquals(
        [memory.gradients, memory.parameters, memory.masters, memory.optimizer - adamwBytes(plan.state)],
        [all, all / 2 + kept, bytesOf(owned), 2 * bytesOf(owned)],
      );
      assertEquals(backend.allocatedBytes, memory.total);

      const own = batch.filter((_, index) => index % 4 === mesh.index("data"));
      const elements = plan.parameters.reduce((sum, { bytes }) => sum + bytes / 4, 0);
      const elementsKept = exact.reduce((sum, { bytes }) => sum + bytes / 4, 0);
      let gathered = 0;
      trainer.onSpan = (name, _begin, _end, { args } = {}) => {
        if (name === "wait for gather") gathered += Number(args!.bytes);
      };
      trainer.zeroGrad();
      await trainer.executeSchedule({ microBatches: own, globalRows: batch.length });
      await trainer.step();
      await trainer.gather();
      const sent = size === 1 ? 0 : 2 * (elements + elementsKept);
      const parts = zero.reduce((sum, { division }) => sum + division.length, 0); // a word each may be half full
      assert(gathered >= sent && gathered <= sent + 2 * parts, `${gathered} bytes for ${elements} parameters`);
      // What is read of a parameter is its master, rounded, wherever that is.
      for (const [name, master] of await tensorsOf(trainer)) {
        const part = { name, begin: 0, end: master.length };
        const [{ buffer, byteOffset }] = backend.read([program.storedRange(part)]).take() as [Uint8Array<ArrayBuffer>];
        const stored = name.includes("norm")
          ? new Float32Array(buffer, byteOffset, master.length)
          : decode("bf16", new Uint16Array(buffer, byteOffset, master.length));
        assertEquals(stored, name.includes("norm") ? master : decode("bf16", encode("bf16", master)), name);
      }
      return memory.masters / all;
    });
    const sum = masters.reduce((sum, share) => sum + share, 0), copies = size === -1 ? 1 : 4 / size;
    assertAlmostEquals(sum, copies, 1e-12, "together the ranks have each master so many times");
  }
});

Deno.test("ranks that share a GPU compute one after the other, to the same bits", async () => {
  const overlap = { overlap_sync_grad: true, overlap_sync_param: true };
  const small = { ...overlap, all_gather_size: 700 };
  // Of the first and the last, one rank has a GPU of its own; two of eight have no rows.
  for (const [ranks, count, options] of [[3, 2, {}], [3, 3, overlap], [4, 4, small], [8, 7, small]] as const) {
    const config = record({ reduce_bucket_size: 150, ...options }, -1, ranks);
    const atOnce = { ...config, runtime: { ...config.runtime, gpu_turns: false } };
    const sharing = Array.from({ length: count }, (_, rank) => rank), passes: [step: number, rank: number][] = [];
    const apart = await together(atOnce, ranks, twoSteps, sharing),
      shared = await together(
        config,
        ranks,
        (trainer, world) => {
          const { rank } = world.mesh;
          trainer.onInstruction = (text) => {
            if (/micro-batch/.test(text) && sharing.includes(rank)) passes.push([trainer.stepCount, rank]);
          };
          return twoSteps(trainer, world);
        },
        sharing,
      );
    assertEquals(shared, apart);
    assertEquals(passes, passes.toSorted(([a, i], [b, j]) => a - b || i - j), "all of one rank, then all of the next");
    assertEquals(new Set(passes.map(([, rank]) => rank)).size, Math.min(6, count));
  }
});

Deno.test("host memory for what travels is what was estimated, in turns and overlapped too", async () => {
  const overlap = { overlap_sync_grad: true, overlap_sync_param: true }, taken: number[] = [];
  for (const [options, inTurn] of [[{}, false], [{}, true], [overlap, false], [overlap, true]] as const) {
    const config = record({ reduce_bucket_size: 150, all_gather_size: 700, ...options }, -1, 2);
    const held = await together(config, 2, async (trainer, world) => {
      await twoSteps(trainer, world);
      const { mesh } = world, planned = planModel(config, trainer.model.program.backend.traits, mesh);
      const own = { ...planned, mesh, prefetches: prefetchOf(config), inTurn };
      const { synchronization } = estimateHostMemory(config, own);
      const bytes = trainer.optimizer.synchronizers.reduce((sum, { heldBytes }) => sum + heldBytes, 0);
      assertEquals(bytes, synchronization, `${JSON.stringify(options)}, in turn: ${inTurn}`);
      return bytes;
    }, inTurn ? [0, 1] : []);
    taken.push(held[0]!);
  }
  assertLess(taken[0]!, taken[1]!, "all at once takes more than three at a time");
});

Deno.test("overlapping changes no bit", async () => {
  const plain = await together(record({ reduce_bucket_size: 150, use_split_tensor_optim: true }, -1, 3), 3, twoSteps);
  const overlapped = await together(
    record(
      { reduce_bucket_size: 150, use_split_tensor_optim: true, overlap_sync_grad: true, overlap_sync_param: true },
      -1,
      3,
    ),
    3,
    twoSteps,
  );
  assertEquals(overlapped, plain);
});

const overlapping: [string, Record<string, unknown>, Record<string, unknown>, (trainer: Trainer) => boolean][] = [
  [
    "on stages that tie a head to the embedding",
    { tie_word_embeddings: true },
    { pipeline: { size: 2 } },
    (trainer) => trainer.model.overlap!.late.length > 0,
  ],
  ["on stages of two chunks", { num_layers: 4, num_chunks: 2 }, {
    pipeline: { size: 2, interleaved_overlap: true },
  }, ({ model: { overlap, gatherOverlap } }) =>
    overlap!.buckets.length > 2 &&
    [...gatherOverlap!.passes.values()].every(({ cuts }) => cuts.length > 0)],
  // Backward passes in two halves are not cut, and `overlap_sync_grad` is refused there: parameters alone.
  [
    "on stages that divide backward passes",
    {},
    { pipeline: { size: 2, mode: "ZBH1" } },
    ({ model }) =>
      "backward weight 0" in model.program.plan.segments &&
      [...model.gatherOverlap!.passes.values()].every(({ cuts }) => cuts.length > 0),
  ],
  [
    "of a mixture of experts",
    { num_experts: 4, top_k: 2, moe_type: "Dropless" },
    { expert: { size: 2 } },
    (trainer) => {
      const groups = (of: readonly { group: number }[]) => new Set(of.map(({ group }) => group)).size;
      const { overlap, gatherOverlap } = trainer.model;
      return groups(overlap!.buckets) > 1 && new Set(gatherOverlap!.passes.get("forward 0")!.groups).size > 1;
    },
  ],
  ["where gradients are summed a second time, over a tensor group", {}, { tensor: { size: 2, mode: "msp" } }, (
    trainer,
  ) => trainer.model.terms.length > 0],
];
for (const [what, model, parallel, covers] of overlapping) {
  Deno.test(`overlapping changes no bit ${what}`, async () => {
    const whole = (parallel.pipeline as { mode?: string } | undefined)?.mode !== "ZBH1";
    const config = (overlap: boolean) =>
      tinyRecord({
        model_type: "num_experts" in model ? "INTERNLM_MoE" : "INTERNLM2",
        model: { hidden_size: 16, num_attention_heads: 2, num_kv_attention_heads: 2, vocab_size: 18, ...model },
        data: { seq_len: 10, micro_num: 2 },
        hybrid_zero_optimizer: {
          clip_grad_norm: 0.5,
          reduce_bucket_size: 150,
          all_gather_size: 700,
          use_split_tensor_optim: true,
          overlap_sync_grad: overlap && whole,
          overlap_sync_param: overlap,
        },
        parallel,
      }, { worldSize: 4 });
    const rows = [[10], [4, 6], [2, 8], [10]].map((each, index) => drawnMicroBatch(`even row ${index}`, each));
    const ran = async (overlap: boolean) =>
      await together(config(overlap), 4, async (trainer, world) => {
        const { overlap: reduction, gatherOverlap } = trainer.model;
        assertEquals([reduction, gatherOverlap].map(Boolean), [overlap && whole, overlap]);
        return { ...await twoSteps(trainer, world, rows), covers: overlap && covers(trainer) };
      });
    const [plain, overlapped] = [await ran(false), await ran(true)];
    assert(overlapped.some(({ covers }) => covers), "some rank has what the test is of");
    assertEquals(overlapped.map(({ covers: _, ...each }) => each), plain.map(({ covers: _, ...each }) => each));
  });
}

Deno.test("parameters of other ranks are waited for where a forward pass first reads them, and not before", async () => {
  const config = (ranks: number) =>
    record({ all_gather_size: 700, use_split_tensor_optim: true, overlap_sync_param: true }, -1, ranks);
  const plain = await together(record({ all_gather_size: 700, use_split_tensor_optim: true }, -1, 2), 2, twoSteps);
  const waits = await together(config(2), 2, async (trainer, world) => {
    const { gatherOverlap, zero, program: { plan } } = trainer.model, order: string[] = [];
    const { before, passes } = gatherOverlap!,
      [[segment, { cuts, groups }]] = [...passes] as [[string, { cuts: number[]; groups: number[] }]];
    assertEquals([passes.size, segment], [1, "forward 0"]);
    assertEquals(groups.length + before.length, zero.flatMap((each) => each.gathers).length);
    assertEquals(cuts.every((cut, i) => i === 0 || cut >= cuts[i - 1]!), true);
    assertEquals(cuts.at(-1)! > plan.segments["forward 0"].instructions.length / 2, true);
    // Each parameter comes, as one waits at the cuts, before the first instruction that reads it.
    const read = firstReads(plan, "forward 0"), next = zero.map(() => 0);
    const arrive = (group: number, cut: number) => {
      for (const { name } of zero[group]!.gathers[next[group]!++]!.parts) assertLess(cut, read.get(name)!);
    };
    before.forEach((group) => arrive(group, -1));
    groups.forEach((group, i) => arrive(group, cuts[i]!));
    trainer.onInstruction = (text) => order.push(text);
    trainer.optimizer.synchronizers.forEach((each) => each.onSpan = (name) => order.push(name));
    const steps = await twoSteps(trainer, world);
    return { steps, order };
  });
  assertEquals(waits.map(({ steps }) => steps), plain);
  const { order } = waits[0]!;
  const pass = order.indexOf("step 2: forward 0 of micro-batch 0"),
    next = order.indexOf("step 2: backward 0 of micro-batch 0");
  assertEquals(order.slice(pass, next).filter((name) => name === "wait for gather").length > 1, true);
});

Deno.test("moments are planned and kept for what a rank updates, and the estimate says so", () => {
  using backend = openNullBackend();
  const memory = (ranks: number, rank: number, options = {}) => {
    const config = record(options, -1, ranks);
    return planModel(config, backend.traits, runMesh(config, { rank, world: ranks })).memory;
  };
  const alone = memory(1, 0).optimizer;
  for (const options of [{}, { use_split_tensor_optim: true }, { overlap_sync_param: true }]) {
    const each = [0, 1, 2, 3].map((rank) => memory(4, rank, options).optimizer);
    for (const bytes of each) assertEquals(bytes < alone, true, `${each} of ${alone}`);
  }
  assertEquals(memory(4, 2).parameters, memory(1, 0).parameters);
});

Deno.test("ranks that do not divide a parameter are refused, with a number of them that divides all", () => {
  using backend = openNullBackend();
  const refused = (world: number, parallel: Record<string, unknown>, sentence: string) => {
    const model = {
      hidden_size: 16,
      num_attention_heads: 4,
      num_kv_attention_heads: 4,
      vocab_size: 18,
      multiple_of: 8,
    };
    const config = tinyRecord({ model, parallel }, { worldSize: world });
    const error = assertThrows(
      () => planModel(config, backend.traits, runMesh(config, { rank: 0, world })),
      ConfigError,
    );
    assertStringIncludes(error.message, sentence);
  };
  const name = "layers.0.attention.q.weight, of 16 rows or columns";
  refused(3, { zero1: { fsdp: true } }, `parallel.zero1.size: 3 does not divide ${name}; 1 would work`);
  refused(6, { zero1: { fsdp: true } }, `parallel.zero1.size: 6 does not divide ${name}; 2 would work`);
  refused(6, { tensor: { mode: "isp" }, weight: 6 }, `parallel.weight.size: 6 does not divide ${name}; 2 would work`);
});

Deno.test("a gradient that is not finite on one rank ends the step of all", async () => {
  const all = await together(record({}, -1, 2), 2, async (trainer, { mesh }) => {
    trainer.zeroGrad();
    await trainer.executeSchedule({ microBatches: [batch[mesh.index("data")]!] });
    const name = trainer.model.program.plan.parameters[0]!.name;
    const before = await tensorsOf(trainer);
    if (mesh.rank === 1) {
      const values = await trainer.model.program.readParameter("parameter", name);
      trainer.model.program.writeParameter("parameter", name, values.fill(NaN));
    }
    trainer.zeroGrad();
    await trainer.executeSchedule({ microBatches: [batch[mesh.index("data")]!] });
    const { success } = await trainer.step();
    const after = await tensorsOf(trainer);
    return { success, same: mesh.rank === 1 || [...after].every(([key, v]) => v.join() === before.get(key)!.join()) };
  });
  assertEquals(all, [{ success: false, same: true }, { success: false, same: true }]);
});

for (const dtype of ["float32", "bfloat16"]) {
  Deno.test(`a checkpoint of ranks that divide the state, in ${dtype}, loads on any number of them`, async () => {
    const folder = await Deno.makeTempDir();
    try {
      const directory = await beginCheckpoint(folder, 1);
      const saved = record({ use_split_tensor_optim: true, reduce_bucket_size: 200 }, 2, 4, dtype);
      const moments = new Map<string, Float32Array>();
      const shards = await together(saved, 4, async (trainer, world) => {
        await twoSteps(trainer, world);
        const { program, boxes } = trainer.model;
        for (const { name, begin, end } of program.plan.state.places) {
          const [bytes] = program.backend.read([program.partRange("moment1", { name, begin, end })]).take();
          const whole = moments.get(name) ?? new Float32Array(boxes.get(name)!.shape.reduce((a, b) => a * b, 1));
          whole.set(new Float32Array(bytes!.buffer, bytes!.byteOffset, bytes!.byteLength / 4), begin);
          moments.set(name, whole);
        }
        const shard = await writeShard({ directory, writer: world.mesh.rank, entries: shardEntries(trainer.model) });
        return { shard, tensors: globalTensors(trainer.model), parameters: await tensorsOf(trainer) };
      });
      const { tensors, parameters } = shards[0]!;
      await commitCheckpoint({
        directory,
        step: 1,
        shards: shards.map(({ shard }) => shard),
        tensors,
        layout: {},
        state: {},
        config: "",
      }).catch(async (error) => {
        await abandonCheckpoint(directory);
        throw error;
      });
      for (const [ranks, options] of [[1, {}], [3, {}], [2, { use_split_tensor_optim: true }]] as const) {
        await together(record(options, -1, ranks, dtype), ranks, async (trainer) => {
          using checkpoint = openCheckpoint(`${folder}/1`);
          loadTensors(trainer.model, checkpoint);
          assertEquals(await tensorsOf(trainer), parameters);
          const { program } = trainer.model;
          for (const { name, begin, end } of program.plan.state.places) {
            const [bytes] = program.backend.read([program.partRange("moment1", { name, begin, end })]).take();
            assertEquals(
              new Float32Array(bytes!.buffer, bytes!.byteOffset, bytes!.byteLength / 4),
              moments.get(name)!.subarray(begin, end),
              `${name} on ${ranks} ranks`,
            );
          }
        });
      }
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  });
}

Deno.test("a batch without micro-batches on any rank is refused", async () => {
  await together(record(), 1, async (trainer) => {
    await assertRejects(() => takeStep(trainer, []), RangeError, "no micro-batches");
  });
});
