import { assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "node:path";
import { encode } from "../../kernels/host.ts";
import { withTempDir } from "./_testing.ts";
import { HuggingFaceFolder, writeHuggingFace } from "./hugging_face.ts";
import type { TensorSource } from "./safetensors.ts";

const config = { model_type: "llama", hidden_size: 4 };
const ramp = (length: number) => Float32Array.from({ length }, (_, i) => i / 2);
const tensors: readonly TensorSource[] = [
  { name: "model.embed_tokens.weight", dtype: "F32", shape: [8, 4], data: ramp(32) },
  { name: "model.norm.weight", dtype: "BF16", shape: [4], data: encode("bf16", ramp(4)) },
  { name: "model.layers.0.mlp.up_proj.weight", dtype: "F16", shape: [4, 2], data: encode("f16", ramp(8)) },
  { name: "lm_head.weight", dtype: "F32", shape: [8, 4], data: ramp(32) },
];
const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();

Deno.test("writeHuggingFace() splits by maxShardBytes and HuggingFaceFolder reads either form", () =>
  withTempDir(async (folder) => {
    Deno.writeTextFileSync(join(folder, "tokenizer.json"), "{}");
    const cases: [number | undefined, string[]][] = [
      [undefined, ["model.safetensors"]],
      [152, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]],
      [1, [1, 2, 3, 4].map((i) => `model-0000${i}-of-00004.safetensors`)],
      [1e6, ["model.safetensors"]],
    ];
    for (const [maxShardBytes, files] of cases) {
      const options = maxShardBytes === undefined ? { config, tensors } : { config, tensors, maxShardBytes };
      assertEquals(await writeHuggingFace(folder, options), files);
      const index = files.length > 1 ? ["model.safetensors.index.json"] : [];
      assertEquals(
        names(folder),
        ["config.json", "tokenizer.json", ...files, ...index].sort(),
        "the other form is gone",
      );
      if (files.length > 1) {
        const { metadata } = JSON.parse(Deno.readTextFileSync(join(folder, index[0])));
        assertEquals(metadata, { total_size: 128 + 8 + 16 + 128 });
      }
      using model = HuggingFaceFolder.open(folder);
      assertEquals(model.config, config);
      assertEquals([...model.names].sort(), tensors.map(({ name }) => name).sort());
      for (const { name, shape } of tensors) {
        model.expectTensor(name, shape);
        assertEquals(model.readFloat32(name), ramp(shape.reduce((a, b) => a * b)));
      }
      assertEquals([...model.readFloat32("lm_head.weight", new Float32Array(2), 5)], [2.5, 3]);
    }
    await assertRejects(() => writeHuggingFace(folder, { config, tensors, maxShardBytes: 0 }), RangeError, "above 0");
  }));

Deno.test("HuggingFaceFolder says what is missing, of the wrong shape or malformed", () =>
  withTempDir(async (folder) => {
    const open = () => HuggingFaceFolder.open(folder)[Symbol.dispose]();
    assertThrows(open, Error, "config.json: no such file or folder");
    Deno.writeTextFileSync(join(folder, "config.json"), "{ nope");
    assertThrows(open, SyntaxError, "config.json: it is not valid JSON");
    Deno.writeTextFileSync(join(folder, "config.json"), "[]");
    assertThrows(open, SyntaxError, "does not hold a JSON object");
    Deno.writeTextFileSync(join(folder, "config.json"), "{}");
    assertThrows(open, Error, "it has neither model.safetensors nor model.safetensors.index.json");
    Deno.writeTextFileSync(join(folder, "pytorch_model.bin"), "");
    assertThrows(open, Error, "pytorch_model.bin is in Python's pickle format");

    await writeHuggingFace(folder, { config, tensors, maxShardBytes: 150 });
    {
      using model = HuggingFaceFolder.open(folder);
      assertThrows(() => model.expectTensor("lm_head.weight", [4, 8]), RangeError, "[8,4] where the model needs [4,8]");
      assertThrows(() => model.expectTensor("bias", [4]), RangeError, 'no tensor "bias", of shape [4]');
      assertThrows(() => model.readFloat32("bias"), RangeError, 'no tensor "bias" among its 4');
    }
    const index = join(folder, "model.safetensors.index.json");
    const original = Deno.readTextFileSync(index);
    const edits: [(text: string) => string, string][] = [
      [(text) => text.replace("weight_map", "map"), "it has no weight_map object"],
      [(text) => text.replace("model-00001", "../model-00001"), "which is no plain file name"],
      [(text) => text.replace("lm_head.weight", "bias"), 'it has no tensor "bias"'],
      [(text) => text.replace("model-00001", "model-00009"), "model-00009-of-00002.safetensors: no such file"],
      [(text) => text.slice(0, 50), "not valid JSON"],
    ];
    for (const [edit, message] of edits) {
      Deno.writeTextFileSync(index, edit(original));
      const error = assertThrows(open, Error, message);
      assertStringIncludes(error.message, folder);
    }
    Deno.writeTextFileSync(index, original);
    Deno.truncateSync(join(folder, "model-00002-of-00002.safetensors"), 60);
    assertThrows(open, RangeError, "model-00002-of-00002.safetensors");
  }));

Deno.test("writeHuggingFace() that fails leaves the folder as it was", () =>
  withTempDir(async (folder) => {
    await writeHuggingFace(folder, { config, tensors });
    const bad = [...tensors.slice(0, 3), { ...tensors[3], data: ramp(3) }];
    await assertRejects(
      () => writeHuggingFace(folder, { config: {}, tensors: bad, maxShardBytes: 1 }),
      RangeError,
      "lm_head",
    );
    assertEquals(names(folder), ["config.json", "model.safetensors"]);
    using model = HuggingFaceFolder.open(folder);
    assertEquals(model.config, config);
    assertEquals(model.readFloat32("lm_head.weight"), ramp(32));
  }));
