import { assert, assertEquals, assertGreater } from "@std/assert";
import { openBackend } from "../backend/open.ts";
import { loadConfig, resolveConfig } from "../config/mod.ts";
import { inScratch, tinyRun } from "./_testing.ts";
import type { BenchLine } from "./bench_line.ts";
import { benchMemory, benchPlannedMemory } from "./bench_memory.ts";
import { modelSettings, modelSizeNames, typeSettings } from "./bench_models.ts";

Deno.test("bench memory tells what is held, part by part, and that it is what was planned", () =>
  inScratch(async (folder) => {
    const { config: file } = await tinyRun(folder);
    for (const dtype of ["float32", "bfloat16"] as const) {
      const written = await loadConfig(file, { set: typeSettings(dtype) });
      const config = resolveConfig(written), lines: BenchLine[] = [];
      const report = (line: BenchLine) => lines.push(line);
      using backend = await openBackend("cpu");
      await benchMemory(config, { backend, steps: 2, report });
      const held = lines.filter(({ figure }) => !figure.startsWith("host"));
      const parts = ["parameters", "gradients", "optimizer", "frames", "workspace", "constants", "outputs"];
      if (dtype !== "float32") parts.splice(1, 0, "masters");
      assertEquals(held.map(({ figure }) => figure), [...parts, "peak"]);
      for (const { figure, value, planned } of held) assertEquals([figure, value], [figure, planned]);
      const sum = held.slice(0, -1).reduce((sum, { value }) => sum + (value as number), 0);
      assertEquals(sum, held.at(-1)!.value);
      for (const figure of ["host_rss", "host_heap"]) {
        assertGreater(lines.find((line) => line.figure === figure)!.value as number, 0);
      }
      assertEquals(backend.allocatedBytes, 0);

      const planned: BenchLine[] = [];
      await benchPlannedMemory(config, (line) => planned.push(line));
      assertEquals(
        planned.map(({ figure, value, planned }) => [figure, value, planned]),
        held.map(({ figure, value, planned }) => [figure, value, planned]),
      );
    }
  }));

Deno.test("modelSettings() are models of the size that their names say", async () => {
  for (const size of modelSizeNames) {
    const config = resolveConfig(await loadConfig("configs/demo.yaml", { set: modelSettings(size) }));
    const { num_layers, hidden_size, vocab_size } = config.model;
    const ffn = Math.ceil(hidden_size * 8 / 3 / 256) * 256;
    // Beside the two tables, of which people count one.
    const count = num_layers * (4 * hidden_size ** 2 + 3 * hidden_size * ffn) + vocab_size * hidden_size;
    const named = size.endsWith("B") ? Number(size.slice(0, -1)) * 1e9 : Number(size.slice(0, -1)) * 1e6;
    assert(Math.abs(count / named - 1) < 0.1, `${size}: ${count}`);
    assertEquals(config.data.packed_length, 4096);
  }
});
