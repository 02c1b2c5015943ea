/** What people see of bad input: one clear sentence, the right exit code, no stack trace, and nothing lost. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { onSmallDisk, troupe } from "../src/cli/_testing.ts";
import { goldenPath } from "./golden_dir.ts";
import {
  assertNoStackTrace,
  checkpointEntries,
  curve,
  type Ended,
  inFolder,
  type Processes,
  tinyRecord,
} from "./processes.ts";

/** Words of the program on standard error, with the exit code. */
function assertSays({ code, out, err }: Ended, expected: number, words: RegExp): void {
  assertNoStackTrace({ code, out, err });
  assertMatch(err, words);
  assertEquals(code, expected, err);
  assert(!/\bask "|crashed|os error/.test(err), `speaks of its insides: ${err}`);
}

interface Case {
  readonly what: string;
  readonly args: readonly string[];
  readonly code: 1 | 2;
  readonly says: RegExp;
}

async function checkAll(test: Deno.TestContext, folder: string, processes: Processes, cases: readonly Case[]) {
  for (const { what, args, code, says } of cases) {
    await test.step(what, async () => assertSays(await processes.run(args, { folder }), code, says));
  }
}

/** As `checkAll`, all but the first without a process of the program each; the ranks that it starts are processes as ever. */
async function checkWords(test: Deno.TestContext, folder: string, processes: Processes, cases: readonly Case[]) {
  await checkAll(test, folder, processes, cases.slice(0, 1));
  for (const { what, args, code, says } of cases.slice(1)) {
    await test.step(what, async () => assertSays(await troupe(...args), code, says));
  }
}

Deno.test("words that mean nothing are refused with 2", (test) =>
  inFolder(async (folder, processes) => {
    const config = tinyRecord(folder);
    Deno.writeTextFileSync(`${folder}/torn.yaml`, "model: {num_layers: [1");
    Deno.writeTextFileSync(`${folder}/words.yaml`, "hello");
    await checkWords(test, folder, processes, [
      { what: "an argument", args: ["train", "--confg", config], code: 2, says: /no argument --confg; --config is/ },
      {
        what: "a word too many",
        args: ["train", "configs/demo.yaml", "now"],
        code: 2,
        says: /"now" is not understood here/,
      },
      { what: "a missing value", args: ["train", "--config"], code: 2, says: /--config needs a value/ },
      { what: "no number", args: ["train", "--nproc", "two"], code: 2, says: /--nproc: "two" is not a whole number/ },
      { what: "a port of no kind", args: ["train", "--port", "99999"], code: 2, says: /--port: 99999 is no port/ },
      {
        what: "no file",
        args: ["train", "--config", `${folder}/gone.yaml`],
        code: 2,
        says: /gone\.yaml: .*there is no such file/,
      },
      {
        what: "torn YAML",
        args: ["train", "--config", `${folder}/torn.yaml`],
        code: 2,
        says: /torn\.yaml: cannot be read: .*line/,
      },
      {
        what: "no record",
        args: ["train", "--config", `${folder}/words.yaml`],
        code: 2,
        says: /holds no mapping of sections/,
      },
      {
        what: "a field",
        args: ["train", "--config", config, "--set", "data.seqlen=4"],
        code: 2,
        says: /data\.seqlen: 4: there is no such field; seq_len is the nearest/,
      },
    ]);
  }));

Deno.test("a record with ten faults reports ten, each with its value and one that works", () =>
  inFolder(async (folder, processes) => {
    const config = tinyRecord(folder, {
      model_type: "GPT9",
      model: { num_layers: 0, num_attention_heads: 3, vocab_size: "many", num_layer: 2 },
      data: { seq_len: 0, micro_bsz: -1, total_steps: "x" },
      adam: { lr: "high", adam_beta1: 2 },
    });
    const ended = await processes.run(["train", "--config", config], { folder });
    assertSays(ended, 2, /The run record has 10 problems:/);
    const problems = ended.err.split("\n").filter((line) => line.startsWith("  "));
    assertEquals(problems.length, 10, ended.err);
    for (
      const [field, value] of [
        ["model_type", '"GPT9"'],
        ["model.num_layers", "0"],
        ["model.num_attention_heads", "3"],
        ["model.vocab_size", '"many"'],
        ["model.num_layer", "2"],
        ["data.seq_len", "0"],
        ["data.micro_bsz", "-1"],
        ["data.total_steps", '"x"'],
        ["adam.lr", '"high"'],
        ["adam.adam_beta1", "2"],
      ] as const
    ) {
      const problem = problems.find((line) => line.startsWith(`  ${field}: `));
      assertStringIncludes(problem ?? "", value, `${field}\n${ended.err}`);
      assertMatch(problem!, /would|nearest/);
    }
  }));

/** Tokenizes a few lines into `folder/data`. @returns the folder that holds `data.bin` */
async function tokenized(folder: string, processes: Processes): Promise<string> {
  const lines = Array.from({ length: 40 }, (_, i) => `Paragraph ${i} says that the sea is kind to the captain.`);
  Deno.writeTextFileSync(`${folder}/sea.txt`, lines.join("\n\n"));
  const args = ["tokenize", "--tokenizer", "bpe.json", "--train_bpe", "280", "--out", "data", "sea.txt"];
  const ended = await processes.run(args, { folder });
  assertEquals(ended.code, 0, ended.err);
  return `${folder}/data/train/en`;
}

Deno.test("damaged data and weights end in a sentence that names the file", (test) =>
  inFolder(async (folder, processes) => {
    const data = await tokenized(folder, processes);
    /** A copy of the data with one file changed. */
    const damaged = (name: string, file: "data.bin" | "data.bin.meta", change: (bytes: Uint8Array) => Uint8Array) => {
      const copy = `${folder}/${name}/en`;
      Deno.mkdirSync(copy, { recursive: true });
      for (const each of ["data.bin", "data.bin.meta"]) {
        const bytes = Deno.readFileSync(`${data}/${each}`);
        Deno.writeFileSync(`${copy}/${each}`, each === file ? change(bytes) : bytes);
      }
      return `${folder}/${name}`;
    };
    /** Every sample's place off by one: rows of two 64-bit numbers after a header of 128 bytes. */
    const shifted = (bytes: Uint8Array) => bytes.map((byte, i) => i >= 128 && i % 16 === 0 ? byte ^ 1 : byte);
    const train = (train_folder: string, vocab_size = 280) => {
      const config = tinyRecord(folder, {
        model: { vocab_size },
        data: { train_folder },
        ckpt: { enable_save_ckpt: false },
      });
      const own = `${train_folder}.${vocab_size}.yaml`;
      Deno.renameSync(config, own);
      return ["train", "--config", own, "--backend", "cpu"];
    };
    const weights = `${folder}/weights`;
    const golden = goldenPath("hf", "llama_gqa");
    Deno.mkdirSync(weights);
    for (const { name, isFile } of Deno.readDirSync(golden)) {
      if (isFile) Deno.writeFileSync(`${weights}/${name}`, Deno.readFileSync(`${golden}/${name}`));
    }
    const misshaped = `${folder}/misshaped`;
    Deno.mkdirSync(misshaped);
    for (const { name } of Deno.readDirSync(weights)) Deno.copyFileSync(`${weights}/${name}`, `${misshaped}/${name}`);
    const shape = JSON.parse(Deno.readTextFileSync(`${weights}/config.json`));
    Deno.writeTextFileSync(
      `${misshaped}/config.json`,
      JSON.stringify({ ...shape, intermediate_size: 2 * shape.intermediate_size }),
    );
    const half = Deno.statSync(`${weights}/model.safetensors`).size >> 1;
    Deno.truncateSync(`${weights}/model.safetensors`, half);
    const truncated = new RegExp(
      String.raw`Cannot read .*model\.safetensors: .* of a file of ${half} bytes: the file is truncated or altered`,
    );

    await checkWords(test, folder, processes, [
      {
        what: "a .bin that was cut off",
        args: train(damaged("short", "data.bin", (bytes) => bytes.subarray(0, bytes.length >> 1))),
        code: 1,
        says: /^troupe train: .*short\/en\/data\.bin is cut off or is not the file that .*\.meta describes/m,
      },
      {
        what: "a .meta with other offsets",
        args: train(damaged("offset", "data.bin.meta", shifted)),
        code: 1,
        says: /^troupe train: .*offset\/en\/data\.bin: bad JSON at byte \d+.*\.meta belong to this file/m,
      },
      {
        what: "a .meta that is none",
        args: train(damaged("none", "data.bin.meta", () => new TextEncoder().encode("hello"))),
        code: 1,
        says: /^troupe train: .*none\/en\/data\.bin\.meta is not a usable NPY file/m,
      },
      {
        what: "no data",
        args: train(`${folder}/nowhere`),
        code: 1,
        says: /^troupe train: data\.train_folder .*nowhere is not a folder/m,
      },
      {
        what: "tokens outside the vocabulary",
        args: train(`${folder}/data/train`, 100),
        code: 1,
        says: /^troupe train: Cannot train on token id \d+: model\.vocab_size is 100; was the data made with another/m,
      },
      {
        what: "no tokenizer",
        args: ["tokenize", "--tokenizer", `${folder}/gone.json`, "--out", `${folder}/more`, `${folder}/sea.txt`],
        code: 1,
        says: /The tokenizer .*gone\.json is missing/,
      },
      {
        what: "weights that were cut off, verified",
        args: ["verify", weights, "--backend", "cpu"],
        code: 1,
        says: truncated,
      },
      {
        what: "weights that were cut off, converted",
        args: ["convert", weights, `${folder}/more`, "--config", `${folder}/nowhere.280.yaml`],
        code: 1,
        says: truncated,
      },
      {
        what: "no weights",
        args: ["verify", `${folder}/gone`, "--backend", "cpu"],
        code: 2,
        says: /there is no .*gone\/curve\.json; a reference training has/,
      },
      {
        what: "weights of another shape",
        args: ["verify", misshaped, "--backend", "cpu"],
        code: 1,
        says:
          /Cannot read tensor "\S+" of .*misshaped\/model\.safetensors: its shape is \[\d+,\d+\] where the model needs/,
      },
    ]);
  }));

Deno.test("a damaged checkpoint is skipped aloud and one of another model refused; neither is touched", (test) =>
  inFolder(async (folder, processes) => {
    const args = (changes: Record<string, Record<string, unknown>> = {}) => [
      "train",
      "--config",
      tinyRecord(folder, { ckpt: { checkpoint_every: 2 }, ...changes }),
      "--backend",
      "cpu",
      "--json",
    ];
    assertEquals((await processes.run(args(), { folder })).code, 0);
    const whole = curve(folder), entries = checkpointEntries(folder, 6);
    const shard = (step: number) => `${folder}/checkpoints/${step}/shard-00000.safetensors`;

    await test.step("another model", async () => {
      const ended = await processes.run(args({ model: { hidden_size: 32 } }), { folder });
      assertSays(
        ended,
        1,
        /Cannot load checkpoint .*\/6: it is of another model: .*auto_resume: false, begins a new run/,
      );
      assertEquals(checkpointEntries(folder, 6), entries);
    });
    await test.step("altered and cut off", async () => {
      const bytes = Deno.readFileSync(shard(6));
      bytes[bytes.length - 5]! ^= 1;
      Deno.writeFileSync(shard(6), bytes);
      Deno.truncateSync(shard(4), 100);
      const ended = await processes.run(args(), { folder });
      assertSays(ended, 0, /^Skipped: Checkpoint .*\/6 is corrupt: .*SHA-256 differs/m);
      assertMatch(ended.err, /^Skipped: Checkpoint .*\/4 is corrupt: .* has 100 bytes where \d+ were/m);
      assertMatch(ended.err, /resumed from step 2 /);
      assertEquals(curve(folder), whole);
      assertEquals(checkpointEntries(folder, 6), entries);
    });
  }));

Deno.test("places that cannot be had are named before training, with what to type", (test) =>
  inFolder(async (folder, processes) => {
    using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    const elsewhere = await Deno.makeTempDir(), config = tinyRecord(folder);
    const train = (...more: string[]) => ["train", "--config", config, "--backend", "cpu", ...more];
    await checkWords(test, folder, processes, [
      {
        what: "a folder that may not be written to", // by a process that may write to its own alone

        args: train("--set", `ckpt.save_ckpt_folder=${elsewhere}/checkpoints`),
        code: 1,
        says: /Cannot write to ckpt\.save_ckpt_folder .*TROUPE_WRITE=,.*\/checkpoints before the command/,
      },
      {
        what: "a file in the place of a folder",
        args: train("--set", `ckpt.save_ckpt_folder=${config}/checkpoints`),
        code: 1,
        says: /record\.yaml\/checkpoints: a part of the path is a file/,
      },
      {
        what: "a port in use",
        args: train("--port", String(listener.addr.port)),
        code: 1,
        says: /Cannot listen on 127\.0\.0\.1:\d+: the port is in use; --port with another number, or none, would work/,
      },
    ]);
    await Deno.remove(elsewhere, { recursive: true });
  }));

Deno.test("without an adapter the CPU trains and says so, unless WebGPU was asked for", () =>
  inFolder(async (folder, processes) => {
    const config = tinyRecord(folder);
    const env = { DENO_WEBGPU_BACKEND: "vulkan", VK_DRIVER_FILES: "/nonexistent", VK_ICD_FILENAMES: "/nonexistent" };
    const fallen = await processes.run(["train", "--config", config, "--json"], { folder, env });
    assertSays(fallen, 0, /^No GPU: going on with the CPU backend, which is many times slower\.$/m);
    const refused = await processes.run(["train", "--config", config, "--backend", "webgpu"], { folder, env });
    assertSays(refused, 1, /Cannot open the webgpu backend as no adapter was found: install .*`--backend cpu` works/);
  }));

Deno.test("a disk that is full while saving costs that checkpoint, and the run says so at its end", () =>
  onSmallDisk((disk) =>
    inFolder(async (folder, processes) => {
      // One checkpoint fits into the mebibyte, two do not.
      const config = tinyRecord(folder, {
        model: { vocab_size: 1600 },
        ckpt: { save_ckpt_folder: disk, checkpoint_every: 2 },
      });
      const args = ["train", "--config", config, "--backend", "cpu", "--json"];
      const ended = await processes.run(args, { folder, writable: [disk] });
      assertSays(ended, 1, /^troupe train: The last checkpoint could not be written: .*the disk is full/m);
      assertMatch(ended.err, /^ALERT Checkpoint of step 4 was not saved: .*the disk is full/m);
      assertEquals(curve(folder).length, 6);
      assertEquals([...Deno.readDirSync(disk)].map(({ name }) => name), ["2"]);
      const again = await processes.run(args, { folder, writable: [disk] });
      assertStringIncludes(again.err, "resumed from step 2");
    })
  ));
