/**
 * Reference trainings of `hf/`: replayed on each backend within the limits; weights read, written and read again; and
 * weights that do not fit.
 */
import { assert, assertEquals, assertGreater, assertRejects } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import { HuggingFaceFolder, writeHuggingFace } from "../src/checkpoint/mod.ts";
import { resolveConfig } from "../src/config/mod.ts";
import { getModule, modelTypeOf } from "../src/models/registry.ts";
import { initializeModel } from "../src/train/model.ts";
import { verify } from "../src/train/verify.ts";
import { exportHuggingFace, importWeights } from "../src/train/weights.ts";
import { goldenPath, ownGoldenData } from "./golden_dir.ts";
import { messageOf, skip } from "./skip.ts";

type Json = Readonly<Record<string, unknown>>;

const cases = [...Deno.readDirSync(goldenPath("hf"))].filter(({ isDirectory }) => isDirectory)
  .map(({ name }) => ({ name, folder: goldenPath("hf", name) })).sort((a, b) => a.name < b.name ? -1 : 1);

function recordOf(config: Json) {
  const modelType = modelTypeOf(config);
  return resolveConfig({
    model_type: modelType,
    model: getModule(modelType).huggingFace!.toSection(config),
    data: { seq_len: 4, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
  });
}

/**
 * Of Troupe's own folders, those followed on WebGPU as well: a family with its own norms and gate, and experts. A device
 * compiles each model's kernels anew, for which software takes ten seconds. `verify_webgpu_test.ts` follows a stream of
 * segments with grouped heads; the others differ in sizes, or in biases, accumulation and equal heads, of which
 * `whole_model_webgpu_test.ts` compares whole models with the CPU backend, that follows every folder here. Folders of someone
 * else are followed on both.
 */
const onWebGpu = ["gemma", "mixtral"];

const readConfig = (folder: string): Json => JSON.parse(Deno.readTextFileSync(`${folder}/config.json`));

for (const { name, folder } of cases) {
  const config = readConfig(folder);
  const refused = messageOf(() => recordOf(config));
  if (refused) {
    skip(`verify() follows hf/${name}`, refused);
    continue;
  }
  const backends = ownGoldenData && !onWebGpu.includes(name) ? ["cpu"] as const : ["cpu", "webgpu"] as const;
  for (const backendName of backends) {
    Deno.test(`verify() follows hf/${name} on ${backendName}`, async () => {
      using backend = await openBackend(backendName);
      const report = await verify(folder, { backend });
      await backend.finish();
      assert(report.pass, JSON.stringify(report));
    });
  }
  Deno.test(`exportHuggingFace() gives back hf/${name} tensor by tensor, whole and sharded`, async () => {
    const target = await Deno.makeTempDir();
    try {
      using backend = await openBackend("cpu");
      using source = HuggingFaceFolder.open(folder);
      const record = recordOf(source.config);
      using model = await initializeModel(record, { backend });
      importWeights(model, model.family.huggingFace!.tensors(record.model), source);
      for (const options of [{}, { maxShardBytes: 60_000 }]) {
        const files = await exportHuggingFace(model, target, options);
        if (options.maxShardBytes) assertGreater(files.length, 1);
        else assertEquals(files, ["model.safetensors"]);
        using written = HuggingFaceFolder.open(target);
        assertEquals([...written.names].sort(), [...source.names].sort());
        for (const tensor of source.names) {
          assertEquals(written.info(tensor).shape, source.info(tensor).shape, tensor);
          assertEquals(written.readFloat32(tensor), source.readFloat32(tensor), tensor);
        }
        assertEquals(recordOf(written.config), record, "config.json describes the same model");
      }
    } finally {
      await Deno.remove(target, { recursive: true });
    }
  });
}

const [readable] = cases.filter(({ folder }) => messageOf(() => recordOf(readConfig(folder))) === undefined);

/** A copy of the first readable folder with its tensors changed. */
async function changedWeights(target: string, change: (tensors: Map<string, number[]>) => void): Promise<void> {
  using source = HuggingFaceFolder.open(readable.folder);
  const shapes = new Map(source.names.map((name) => [name, [...source.info(name).shape]]));
  change(shapes);
  await writeHuggingFace(target, {
    config: source.config,
    tensors: [...shapes].map(([name, shape]) => ({
      name,
      dtype: "F32",
      shape,
      data: new Float32Array(shape.reduce((product, size) => product * size, 1)),
    })),
  });
  await Deno.copyFile(`${readable.folder}/curve.json`, `${target}/curve.json`);
}

const faults: [string, (tensors: Map<string, number[]>) => void, RegExp][] = [
  [
    "a missing tensor",
    (tensors) => tensors.delete("model.norm.weight"),
    /no tensor "model\.norm\.weight", of shape \[\d+\]/,
  ],
  [
    "a tensor of another shape",
    (tensors) => tensors.set("model.norm.weight", [3]),
    /model\.norm\.weight.*\[3\].*\[\d+\]/s,
  ],
  [
    "a tensor too many",
    (tensors) => tensors.set("model.extra.weight", [3]),
    /1 tensor belongs to no parameter of \w+: model\.extra\.weight/,
  ],
];
for (const [what, change, message] of faults) {
  Deno.test(`verify() refuses ${what}, naming it`, async () => {
    const target = await Deno.makeTempDir();
    try {
      await changedWeights(target, change);
      using backend = await openBackend("cpu");
      const error = await assertRejects(() => verify(target, { backend }), RangeError);
      assert(message.test(error.message), error.message);
      assertEquals(backend.allocatedBytes, 0, "what was allocated is released");
    } finally {
      await Deno.remove(target, { recursive: true });
    }
  });
}
