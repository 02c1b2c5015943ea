import { assert, assertEquals, assertThrows } from "@std/assert";
import { applyChanges, loadConfig } from "../config/mod.ts";
import { devices } from "../train/hardware.ts";
import { ArgumentError } from "./parser.ts";
import { drawEvenly } from "./plan.ts";
import { layoutName, machinesOf } from "./plan_world.ts";
import { programFile } from "./self.ts";
import { resolveWritten } from "./verb.ts";

const example = (changes: readonly string[] = [], worldSize = 4) =>
  loadConfig(programFile("configs/internlm2_7b.yaml")).then((written) =>
    resolveWritten(applyChanges(written, changes), { worldSize })
  );
const interleaved = ["model.num_chunks=2", "parallel.pipeline.interleaved_overlap=true"];

for (
  const [name, changes] of [["1f1b", []], ["interleaved", interleaved], ["zbh1", ["pipeline.schedule=zbh1"]]] as const
) {
  Deno.test(`docs/pipeline_${name}.svg is what plan --draw prints`, async () => {
    const drawn = drawEvenly(await example(changes), 4, "svg");
    assertEquals(Deno.readTextFileSync(programFile(`docs/pipeline_${name}.svg`)).trimEnd(), drawn);
    const events = JSON.parse(drawEvenly(await example(changes), 4, "trace")) as { ph: string }[];
    assertEquals(
      events.filter(({ ph }) => ph === "X").length,
      drawn.match(/stroke="#444"/g)!.length - (name === "zbh1" ? 3 : 2),
    );
  });
}

Deno.test("plan names layouts in words", async () => {
  assertEquals(layoutName(await example([], 8), 8), "4 stages x 2 replicas, 1f1b");
  assertEquals(layoutName(await example(interleaved), 4), "4 stages x 1 replica, interleaved of 2 chunks");
});

Deno.test("plan --world says which devices and links it knows", () => {
  const args = { world: 8, device: "H200", link: "100gbe", per_host: 8, search: false, draw: undefined, json: false };
  assertEquals(machinesOf(args).device, devices.h200);
  assertThrows(() => machinesOf({ ...args, device: "b300" }), ArgumentError, 'nothing is known of "b300"; h200');
  assertThrows(() => machinesOf({ ...args, link: "pigeon" }), ArgumentError, "100GbE");
  assertThrows(() => machinesOf({ ...args, world: 0 }), ArgumentError, "1 or more would work");
  assert(machinesOf(args).perHost === 8);
});
