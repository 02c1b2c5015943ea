/** Every model folder and weight file of the reference data reads, and written again it is equal, tensor by tensor. */
import { assertEquals, assertGreater } from "@std/assert";
import { HuggingFaceFolder, TensorFile, writeHuggingFace } from "../src/checkpoint/mod.ts";
import { goldenPath } from "./golden_dir.ts";

function entries(folder: string): Deno.DirEntry[] {
  try {
    return [...Deno.readDirSync(folder)].sort((a, b) => a.name < b.name ? -1 : 1);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    console.log(`skipped: there is no ${folder}`);
    return [];
  }
}

for (const { name, isDirectory } of entries(goldenPath("hf"))) {
  if (!isDirectory) continue;
  Deno.test(`writeHuggingFace() writes golden/hf/${name} equal to what was read, whole and sharded`, async () => {
    const target = await Deno.makeTempDir();
    try {
      using source = HuggingFaceFolder.open(goldenPath("hf", name));
      const raw = (model: HuggingFaceFolder, tensor: string) => {
        const bytes = new Uint8Array(model.info(tensor).bytes);
        model.readBytes(tensor, bytes);
        return bytes;
      };
      const tensors = source.names.map((tensor) => {
        const { dtype, shape } = source.info(tensor);
        return { name: tensor, dtype, shape, data: () => [raw(source, tensor)] };
      });
      const total = source.names.reduce((sum, tensor) => sum + source.info(tensor).bytes, 0);
      for (const maxShardBytes of [total, Math.ceil(total / 3), 1]) {
        const files = await writeHuggingFace(target, { config: source.config, tensors, maxShardBytes });
        assertGreater(files.length, maxShardBytes === total ? 0 : 2);
        using copy = HuggingFaceFolder.open(target);
        assertEquals(copy.config, source.config);
        assertEquals([...copy.names].sort(), [...source.names].sort());
        for (const tensor of source.names) {
          copy.expectTensor(tensor, source.info(tensor).shape);
          assertEquals(copy.info(tensor).dtype, source.info(tensor).dtype);
          assertEquals(raw(copy, tensor), raw(source, tensor));
        }
      }
    } finally {
      await Deno.remove(target, { recursive: true });
    }
  });
}

for (const { name } of entries(goldenPath("internevo", "models"))) {
  if (!name.endsWith(".safetensors")) continue;
  Deno.test(`TensorFile reads golden/internevo/models/${name}`, () => {
    const path = goldenPath("internevo", "models", name);
    using file = TensorFile.open(path);
    // The oracle: the first and last values as they stand in the file, found through its own header.
    const bytes = Deno.readFileSync(path);
    const view = new DataView(bytes.buffer);
    const headerBytes = Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + headerBytes)));
    delete header.__metadata__;
    assertEquals([...file.tensors.keys()].sort(), Object.keys(header).sort());
    for (const [tensor, { dtype, shape, data_offsets: [begin, end] }] of Object.entries<Entry>(header)) {
      file.expectTensor(tensor, shape);
      if (dtype !== "F32") {
        console.log(`skipped: ${tensor} is of type ${dtype}`);
        continue;
      }
      const values = file.readFloat32(tensor);
      assertEquals(values.length, (end - begin) / 4);
      assertEquals(values[0], view.getFloat32(8 + headerBytes + begin, true));
      assertEquals(values.at(-1), view.getFloat32(8 + headerBytes + end - 4, true));
    }
  });
}

interface Entry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}
