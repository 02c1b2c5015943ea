import { assert, assertEquals, assertGreater, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { dirname, join } from "node:path";
import { goldenPath } from "../../tests/golden_dir.ts";
import { openBackend } from "../backend/open.ts";
import {
  entryKinds,
  HuggingFaceFolder,
  type Json,
  openCheckpoint,
  saveCheckpoint,
  wholeEntry,
  writeHuggingFace,
} from "../checkpoint/mod.ts";
import { printResolved, resolveConfig } from "../config/mod.ts";
import { createTrainLoader } from "../data/mod.ts";
import { elementCount } from "../graph/graph.ts";
import { getModule, modelTypeOf } from "../models/registry.ts";
import { Session } from "../train/session.ts";
import { exportTensor } from "../train/weights.ts";
import { inScratch, jsonLines, onSmallDisk, tinyRun, troupe } from "./_testing.ts";
import { parseSize } from "./convert.ts";
import { ArgumentError } from "./parser.ts";

const golden = goldenPath("hf", "llama_gqa");

/** A record for the model of a Hugging Face folder, on the built-in dummy data. */
async function recordFor(source: string, folder: string) {
  const config = JSON.parse(await Deno.readTextFile(join(source, "config.json")));
  const modelType = modelTypeOf(config);
  const record = {
    model_type: modelType,
    model: getModule(modelType).huggingFace!.toSection(config),
    data: { seq_len: 8, micro_bsz: 1, micro_num: 2, total_steps: 4 },
    adam: { lr: 1e-3 },
    ckpt: { save_ckpt_folder: `local:${folder}/checkpoints`, checkpoint_every: 4 },
  };
  const path = join(folder, "run.yaml");
  await Deno.writeTextFile(path, JSON.stringify(record));
  return { path, record };
}

function assertEqualFolders(actual: string, expected: string): void {
  using written = HuggingFaceFolder.open(actual), source = HuggingFaceFolder.open(expected);
  assertEquals([...written.names].sort(), [...source.names].sort());
  for (const name of source.names) {
    assertEquals(written.info(name).shape, source.info(name).shape, name);
    assertEquals(written.readFloat32(name), source.readFloat32(name), name);
  }
}

/** A Hugging Face folder of an InternLM2 model, whose query, key and value are one tensor, of numbers all different. */
async function fusedFolder(folder: string): Promise<string> {
  const { huggingFace } = getModule("INTERNLM2");
  const { model } = resolveConfig({
    model_type: "INTERNLM2",
    model: { num_layers: 2, hidden_size: 8, num_attention_heads: 4, num_kv_attention_heads: 2, vocab_size: 10 },
    data: { seq_len: 8, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
  });
  let next = 0;
  await writeHuggingFace(folder, {
    config: huggingFace!.toConfig(model),
    tensors: huggingFace!.tensors(model).map(({ tensor, shape }) => ({
      name: tensor,
      dtype: "F32",
      shape,
      data: Float32Array.from({ length: elementCount(shape) }, () => next++),
    })),
  });
  return folder;
}

for (const [what, make] of [["separate", () => Promise.resolve(golden)], ["fused", fusedFolder]] as const) {
  Deno.test(`convert there and back gives the same tensors, query, key and value ${what}`, () =>
    inScratch(async (folder) => {
      const source = await make(join(folder, "source")), { path } = await recordFor(source, folder);
      const checkpoints = join(folder, "checkpoints");
      const there = await troupe("convert", source, checkpoints, "--config", path, "--json");
      assertEquals(there.code, 0, there.err);
      assertEquals(jsonLines(there)[0].target, join(checkpoints, "0"));
      for (
        const [from, sizes] of [[join(checkpoints, "0"), []], [checkpoints, ["--max_shard_size", "1KB"]]] as const
      ) {
        const target = join(folder, `back-${sizes.length}`);
        const back = await troupe("convert", from, target, ...sizes, "--json");
        assertEquals(back.code, 0, back.err);
        assertEqualFolders(target, source);
        const files = jsonLines<{ files: string[] }>(back)[0].files.filter((name) => name.endsWith(".safetensors"));
        if (sizes.length > 0 && what === "separate") assertGreater(files.length, 1);
        if (sizes.length === 0) assertEquals(files, ["model.safetensors"]);
      }
    }));
}

Deno.test("convert makes a checkpoint that a run resumes from", () =>
  inScratch(async (folder) => {
    const { path, record } = await recordFor(golden, folder), target = join(folder, "checkpoints");
    assertEquals((await troupe("convert", golden, target, "--config", path)).code, 0);
    using backend = await openBackend("cpu"), checkpoint = openCheckpoint(join(target, "0"));
    const config = resolveConfig(record);
    using session = await Session.open(config, { backend });
    const loader = createTrainLoader(config.data, { dataRank: 0, dataWorldSize: 1 });
    await loader.next();
    loader.load(session.restore(checkpoint));

    using source = HuggingFaceFolder.open(golden);
    const { model } = session.trainer;
    for (const mapping of model.family.huggingFace!.tensors(config.model)) {
      assertEquals(await exportTensor(model, mapping), source.readFloat32(mapping.tensor), mapping.tensor);
      assert((await exportTensor(model, mapping, "moment2")).every((value) => value === 0), mapping.tensor);
    }
    const batch = await loader.next();
    assertEquals([batch.batchCount, session.trainer.stepCount], [0, 0]);
    assert((await session.step(batch)).success);
  }));

Deno.test("convert copies the tokenizer that the record names", () =>
  inScratch(async (folder) => {
    const { path } = await recordFor(golden, folder), { tokenizer } = await tinyRun(folder);
    const checkpoints = join(folder, "checkpoints"), back = join(folder, "back");
    await troupe("convert", golden, checkpoints, "--config", path, "--set", `data.tokenizer_path=${tokenizer}`);
    const ran = await troupe("convert", checkpoints, back);
    assertEquals(ran.code, 0, ran.err);
    assertEquals(await Deno.readTextFile(join(back, "tokenizer.json")), await Deno.readTextFile(tokenizer));

    await Deno.remove(tokenizer);
    const without = await troupe("convert", checkpoints, join(folder, "without"));
    assertEquals(without.code, 0);
    assertMatch(without.err, /tokenizer\.json, which the record names, is not there/);

    // Whatever kind of file it is; nothing reads it here.
    const model = join(folder, "bpe.model"), others = join(folder, "others");
    await Deno.writeTextFile(model, "pieces");
    await troupe("convert", golden, others, "--config", path, "--set", `data.tokenizer_path=${model}`);
    assertEquals((await troupe("convert", others, join(folder, "named"))).code, 0);
    assertEquals(await Deno.readTextFile(join(folder, "named", "tokenizer.model")), "pieces");
  }));

Deno.test("convert asks for no ranks, whatever number of them divided the run", () =>
  inScratch(async (folder) => {
    const { path } = await recordFor(golden, folder), target = join(folder, "checkpoints");
    const divided = ["--set", "parallel.tensor=2", "--set", "parallel.pipeline=2", "--set", "runtime.nproc=3"];
    const made = await troupe("convert", golden, target, "--config", path, ...divided);
    assertEquals(made.code, 0, made.err);
    // As a run of four processes under a launcher leaves it: the record has one rank to a host.
    const { record } = await recordFor(golden, folder);
    const config = resolveConfig({ ...record, parallel: { tensor: 2, pipeline: 2 } }, { worldSize: 4 });
    using source = openCheckpoint(join(target, "0"));
    await saveCheckpoint({
      folder: join(folder, "divided"),
      step: 1,
      entries: entryKinds.flatMap((kind) =>
        source.names(kind).map((name) =>
          wholeEntry(kind, name, source.shape(kind, name)!, () => [source.readTensor(kind, name) as Float32Array])
        )
      ),
      layout: { world: 4, ...config.parallel } as unknown as Json,
      state: {},
      config: printResolved(config),
    });
    const back = await troupe("convert", join(folder, "divided"), join(folder, "back"));
    assertEquals(back.code, 0, back.err);
    assertEqualFolders(join(folder, "back"), golden);
  }));

Deno.test("convert replaces only when told to, and only weights", () =>
  inScratch(async (folder) => {
    const { path } = await recordFor(golden, folder);
    const checkpoints = join(folder, "checkpoints"), back = join(folder, "back");
    await troupe("convert", golden, checkpoints, "--config", path);
    await Deno.mkdir(back);
    await Deno.writeTextFile(join(back, "notes.txt"), "mine");
    const refused = await troupe("convert", checkpoints, back);
    assertEquals([refused.code, [...Deno.readDirSync(back)].length], [2, 1]);
    assertMatch(refused.err, /back is not empty and is left alone.*--overwrite/);
    assertEquals((await troupe("convert", checkpoints, back, "--overwrite")).code, 0);
    assertEqualFolders(back, golden);
    assertEquals(await Deno.readTextFile(join(back, "notes.txt")), "mine");

    const again = await troupe("convert", golden, checkpoints, "--config", path);
    assertMatch(again.err, /checkpoints is not empty/);
    assertEquals((await troupe("convert", golden, checkpoints, "--config", path, "--overwrite")).code, 0);
    assertEquals([...Deno.readDirSync(checkpoints)].map(({ name }) => name), ["0"]);
  }));

Deno.test("convert refuses in one sentence what cannot work", () =>
  inScratch(async (folder) => {
    const { path } = await recordFor(golden, folder), checkpoints = join(folder, "checkpoints");
    const empty = join(folder, "empty"), other = join(folder, "other"), target = join(folder, "target");
    await Deno.mkdir(empty);
    await troupe("convert", golden, checkpoints, "--config", path);
    await fusedFolder(other);
    const shard = join(checkpoints, "0", "shard-00000.safetensors"), damaged = join(folder, "damaged", "0");
    await Deno.mkdir(dirname(damaged));
    await Deno.mkdir(damaged);
    for (const { name } of Deno.readDirSync(dirname(shard))) {
      await Deno.copyFile(join(dirname(shard), name), join(damaged, name));
    }
    const bytes = await Deno.readFile(shard);
    bytes[bytes.length - 5] ^= 1;
    await Deno.writeFile(join(damaged, "shard-00000.safetensors"), bytes);

    const cases: [string[], number, RegExp][] = [
      [[golden], 2, /target is missing/],
      [[join(folder, "none"), target], 2, /there is no folder .*none/],
      [[path, target], 2, /run\.yaml is a file, a folder is needed/],
      [[empty, target], 2, /empty is neither a checkpoint/],
      [[golden, target], 2, /--config is missing/],
      [[golden, target, "--config", join(folder, "none.yaml")], 2, /none\.yaml.*cannot be read/],
      [[golden, target, "--config", path, "--max_shard_size", "1GB"], 2, /--max_shard_size is for Hugging Face/],
      [[golden, golden, "--config", path, "--overwrite"], 2, /llama_gqa is the source/],
      [
        [golden, target, "--config", path, "--set", "model.rope_base=12345"],
        1,
        /another model than .*config\.json: rope_theta is \d+ there, 12345 in the record.*model: \{/s,
      ],
      [[other, target, "--config", path], 1, /model_type "internlm2".*model_type LLAMA2 does not read/],
      [[checkpoints, target, "--config", path], 2, /has its own record/],
      [[checkpoints, target, "--max_shard_size", "1XB"], 2, /"1XB" is not a size; 5GB/],
      [[damaged, target], 1, /shard-00000\.safetensors is not what was committed/],
      [[dirname(damaged), target], 1, /SHA-256.*\n.*damaged holds no usable checkpoint/s],
      [["s3:bucket/x", target], 1, /S3.*not supported/],
    ];
    for (const [args, code, message] of cases) {
      const ran = await troupe("convert", ...args);
      assertEquals([ran.code, ran.out], [code, ""], `${args.join(" ")}: ${ran.err}`);
      assertMatch(ran.err, message);
      assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name).includes("target"), false, args.join(" "));
    }
  }));

Deno.test("convert refuses weights that do not fit, naming the tensor", () =>
  inScratch(async (folder) => {
    const { path } = await recordFor(golden, folder);
    using source = HuggingFaceFolder.open(golden);
    const changed = async (name: string, change: (names: Map<string, readonly number[]>) => void) => {
      const shapes = new Map(source.names.map((tensor) => [tensor, source.info(tensor).shape]));
      change(shapes);
      const tensors = [...shapes].map(([name, shape]) => (
        { name, dtype: "F32", shape, data: new Float32Array(elementCount(shape)) } as const
      ));
      await writeHuggingFace(join(folder, name), { config: source.config, tensors });
      return (await troupe("convert", join(folder, name), join(folder, "target"), "--config", path)).err;
    };
    const norm = "model.norm.weight";
    assertMatch(await changed("missing", (shapes) => shapes.delete(norm)), /no tensor "model\.norm\.weight"/);
    assertMatch(await changed("shape", (shapes) => shapes.set(norm, [3])), /model\.norm\.weight.*\[3\].*\[\d+\]/s);
    assertMatch(await changed("extra", (shapes) => shapes.set("x.bias", [3])), /no parameter of the model: x\.bias/);
  }));

Deno.test("convert on a full disk says so, and leaves no checkpoint", () =>
  inScratch(async (folder) => {
    const { path } = await recordFor(golden, folder);
    await onSmallDisk(async (disk) => {
      const fill = await Deno.open(join(disk, "fill"), { write: true, create: true });
      await fill.write(new Uint8Array(900 << 10));
      fill.close();
      const target = join(disk, "checkpoints");
      const ran = await troupe("convert", golden, target, "--config", path);
      assertEquals(ran.code, 1);
      assertMatch(ran.err, /the disk is full: .* are needed/);
      assertEquals([...Deno.readDirSync(target)], []);
    });
  }));

Deno.test("parseSize() reads sizes with and without units", () => {
  assertEquals(["123", "5GB", "1.5 kb", "2MiB"].map(parseSize), [123, 5e9, 1500, 2 << 20]);
  for (const text of ["", "GB", "-1", "0", "5 apples"]) assertThrows(() => parseSize(text), ArgumentError, "5GB");
});

Deno.test("convert --help tells both directions", async () => {
  const { code, out } = await troupe("convert", "--help");
  assertEquals(code, 0);
  for (const word of ["Usage: troupe convert SOURCE TARGET", "checkpoint of step 0", "--max_shard_size TEXT"]) {
    assertStringIncludes(out, word);
  }
});
