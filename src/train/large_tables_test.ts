import { assert, assertEquals, assertGreater, assertThrows } from "@std/assert";
import { compare } from "../../kernels/testing.ts";
import type { Backend } from "../backend/backend.ts";
import { openCpuBackend } from "../backend/cpu/backend.ts";
import { openWebGpuBackend } from "../backend/webgpu/backend.ts";
import { defaultProvider } from "../backend/webgpu/provider.ts";
import { onAllRanks, simulatedWorld } from "../comm/_testing.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { createWorld, type World } from "../parallel/world.ts";
import { drawnMicroBatch, openTrainer, takeStep, tensorsOf, tinyRecord } from "./_testing.ts";
import { planModel } from "./model.ts";
import { singleRank } from "../parallel/mesh.ts";

/** Bytes of a binding: the tables of 1,001 rows need three to six. */
const limits = { maxStorageBufferBindingSize: 12_800 };
const vocab_size = 1001;
const batch = [
  drawnMicroBatch("a", [9], { vocab: vocab_size }),
  drawnMicroBatch("b", [4, 5], { vocab: vocab_size, ignored: 3 }),
];
const changes = {
  "own head": {},
  "tied, smoothed": { model: { tie_word_embeddings: true }, loss: { label_smoothing: 0.1 } },
  "normalised head": { model: { norm_head: true, embed_grad_scale: 0.5 } },
  "normalised head of another width": { model: { norm_head: true, hidden_size: 18, embed_grad_scale: 0.5 } },
};
/** Those that a device has too: it compiles each width's kernels anew, and these two have the first one's. */
const onDevice = ["tied, smoothed", "normalised head"];
const record = (change: Record<string, Record<string, unknown>>, worldSize = 1): ResolvedConfig =>
  tinyRecord({ ...change, model: { vocab_size, num_layers: 1, ...change.model } }, { worldSize });

/** Logits of the initial weights, gradients of the first step, and what three steps say. */
async function threeSteps(config: ResolvedConfig, backend: Backend, world?: World) {
  using trainer = await openTrainer(config, backend, world);
  const tensors = new Map<string, Float32Array>();
  const { microBatches } = await trainer.evaluate(batch, { logits: true });
  microBatches.forEach(({ logits, nll, correct }, index) =>
    tensors.set(`logits ${index}`, logits!).set(`nll ${index}`, nll).set(`correct ${index}`, new Float32Array(correct))
  );
  const steps = [];
  for (let step = 0; step < 3; step++) {
    const { loss, gradNorm, success } = await takeStep(trainer, batch);
    assert(success);
    steps.push(loss, gradNorm);
    if (step > 0) continue;
    for (const [name, data] of await tensorsOf(trainer, "gradient")) tensors.set(`gradient of ${name}`, data);
  }
  return tensors.set("losses and norms", new Float32Array(steps));
}

type Tensors = Awaited<ReturnType<typeof threeSteps>>;
function assertAlike(actual: Tensors, expected: Tensors, tolerance: number): void {
  assertEquals([...actual.keys()], [...expected.keys()]);
  const faults = [...actual].flatMap(([name, data]) => compare(name, data, expected.get(name)!, tolerance).fault ?? []);
  assertEquals(faults, []);
}

for (const [what, change] of Object.entries(changes)) {
  Deno.test(`a model trains the same with tables larger than a binding, ${what}`, async () => {
    const config = record(change);
    using oracle = openCpuBackend();
    const expected = await threeSteps(config, oracle);
    using cut = openCpuBackend(limits);
    assertAlike(await threeSteps(config, cut), expected, 1e-5);
    if (!onDevice.includes(what)) return;
    using device = await openWebGpuBackend(defaultProvider(), { limits });
    assertAlike(await threeSteps(config, device), expected, 2e-4);
    await device.finish();
  });
}

for (const dtype of ["float16", "bfloat16"] as const) {
  Deno.test(`a model in ${dtype} trains the same with tables larger than a binding`, async () => {
    const config = record({ model: { dtype } });
    using whole = openCpuBackend(), cut = openCpuBackend({ maxStorageBufferBindingSize: 9_600 });
    const { plan } = planModel(config, cut.traits, singleRank);
    assertGreater(plan.state.runs.length, 8);
    // Logits are in parts here and there, so that sums go other ways: a rounding of the type apart.
    assertAlike(await threeSteps(config, cut), await threeSteps(config, whole), dtype === "float16" ? 1e-2 : 6e-2);
  });
}

Deno.test("two ranks that divide the vocabulary cut their parts of tables larger than a binding", async () => {
  const config = record({
    model: { vocab_size: 1002, num_attention_heads: 2 },
    parallel: { tensor: { size: 2, mode: "mtp" } },
  }, 2);
  const onTwo = (limits = {}) =>
    onAllRanks(simulatedWorld(2), async (communicator, rank) => {
      using backend = openCpuBackend(limits);
      return await threeSteps(config, backend, createWorld(runMesh(config, { rank, world: 2 }), communicator));
    });
  const [cut, whole] = [await onTwo(limits), await onTwo()];
  cut.forEach((tensors, rank) => assertAlike(tensors, whole[rank]!, 1e-5));
});

Deno.test("planModel() binds nothing larger than the device allows, and refuses what cannot be cut", () => {
  for (const change of Object.values(changes)) {
    const { plan } = planModel(record(change), { limits: { maxBufferSize: 1e9, ...limits } }, singleRank);
    const places = Object.values(plan.segments).flatMap(({ instructions }) => instructions)
      .flatMap((instruction) => instruction.kind === "dispatch" ? instruction.places : []);
    assertEquals(places.filter(({ bytes, offset }) => bytes > 12_800 || offset % 256 !== 0), []);
    assertEquals(plan.state.runs.filter(({ bytes }) => bytes > 12_800), []);
    assertGreater(Math.max(...plan.arenas), 12_800); // one tensor in one buffer
  }
  const huge = record({ model: { mlp_ratio: 100 } });
  assertThrows(
    () => planModel(huge, { limits: { maxBufferSize: 1e9, ...limits } }, singleRank),
    RangeError,
    "one binding of this device holds at most 12800",
  );
  assertThrows(
    () => planModel(record({}), { limits: { maxBufferSize: 40_000, maxStorageBufferBindingSize: 12_800 } }, singleRank),
    RangeError,
    "it takes 48048 bytes, one buffer of this device holds at most 40000",
  );
});
