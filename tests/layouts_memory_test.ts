/** However a model is divided, each rank holds on its device what was planned, and predictions plan the same. */
import { assertEquals } from "@std/assert";
import { devices, links } from "../src/train/hardware.ts";
import { predict } from "../src/train/predict.ts";
import { onWorld, recordOf } from "./layouts.ts";
import { layouts, runs } from "./layouts_table.ts";

Deno.test("every rank of every layout holds what was planned for it, to the byte, and what troupe plan --world says", async () => {
  for (const [layout, division] of Object.entries(layouts)) {
    for (const name of [...new Set([division.runs?.[0] ?? "internlm2", division.runs?.at(-1) ?? "internlm2"])]) {
      const config = recordOf(runs[name], division), what = `${name} on ${layout}`;
      const held = await onWorld(config, division.ranks, ({ model: { memory, program, world: { mesh } } }) => {
        assertEquals(program.backend.allocatedBytes, memory.total, `rank ${mesh.rank} of ${what}`);
        return Promise.resolve({ stage: mesh.index("pipeline"), bytes: memory.total });
      });
      const { stages } = predict(config, { world: division.ranks, device: devices.h200!, link: links.loopback! });
      stages.forEach(({ memory }, stage) =>
        assertEquals(memory.total, held.find((each) => each.stage === stage)!.bytes, `stage ${stage} of ${what}`)
      );
    }
  }
});
