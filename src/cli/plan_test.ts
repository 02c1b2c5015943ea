import { assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import { applyChanges, loadConfig } from "../config/mod.ts";
import { devices, links } from "../train/hardware.ts";
import { predict } from "../train/predict.ts";
import { troupe } from "./_testing.ts";
import { ArgumentError } from "./parser.ts";
import { drawEvenly } from "./plan.ts";
import { layoutName, machinesOf, whyBest } from "./plan_world.ts";
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

Deno.test("docs/plan.md shows what plan --world prints", async () => {
  const doc = Deno.readTextFileSync(programFile("docs/plan.md"));
  const shown = doc.split("```text\n")[1]!.split("```")[0]!.trim();
  const { out } = await troupe("plan", programFile("configs/internlm2_7b.yaml"), "--world", "64");
  assertEquals(out.trim(), shown);
});

Deno.test("plan says what each part of the memory is for, and leaves out parts of none", async () => {
  const { out } = await troupe("plan", "--backend", "cpu");
  assertMatch(out, /^ {2}frames +\S+ MiB {2}activations that backward passes will read$/m);
  assertEquals([/^ {2}masters/m.test(out), /^ {2}total +\S+ MiB/m.test(out)], [false, true], out);
});

Deno.test("plan names layouts in words", async () => {
  assertEquals(layoutName(await example([], 8), 8), "4 stages x 2 replicas, 1f1b");
  assertEquals(layoutName(await example(interleaved), 4), "4 stages x 1 replica, interleaved of 2 chunks");
});

Deno.test("plan --world says which devices and links it knows, and who shares a device", async () => {
  const args = { world: 8, device: "H200", link: "100gbe", per_host: 8, search: false, draw: undefined, json: false };
  const { device, perHost, perDevice } = await machinesOf(args);
  assertEquals([device, perHost, perDevice], [devices.h200, 8, 1]);
  assertEquals((await machinesOf({ ...args, per_host: 2 }, 8)).perDevice, 4, "8 ranks on a machine with 2 devices");
  assertEquals((await machinesOf({ ...args, per_device: 3 }, 8)).perDevice, 3);
  const refused: [Partial<typeof args> & { per_device?: number }, string][] = [
    [{ device: "b300" }, 'nothing is known of "b300"; h200'],
    [{ link: "pigeon" }, "100GbE"],
    [{ world: 0 }, "1 or more would work"],
    [{ per_device: 0 }, "--per_device: 0 is too small"],
  ];
  for (const [change, message] of refused) {
    await assertRejects(() => machinesOf({ ...args, ...change }), ArgumentError, message);
  }
});

Deno.test("plan refuses figures of a prediction that nobody asked for, and one of no ranks", async () => {
  for (
    const [args, words] of [
      [["--device", "h200"], "--device is for"],
      [["--world", "0"], "--world: 0 is too small"],
      [["--world", "9999999999"], "--world: 9999999999 is more than 65536 ranks"],
    ] as const
  ) {
    const { code, err } = await troupe("plan", ...args);
    assertEquals(code, 2);
    assertStringIncludes(err, words);
  }
});

Deno.test("plan --search says what the best layout's step is made of, and where others lose time", async () => {
  const ranked = async (changes: readonly string[]) => {
    const config = await example(["model.num_layers=4", "model.hidden_size=256", ...changes], 4);
    const machines = { world: 4, device: devices.h200!, link: links["1GbE"]!, perHost: 1 };
    return { set: [], config, prediction: predict(config, machines) };
  };
  const [stages, replicas] = [await ranked([]), await ranked(["parallel.pipeline.size=1", "data.micro_num=2"])];
  const line = whyBest(stages, [replicas], 4);
  assertMatch(
    line,
    /^Its step is [\d.]+ m?s of passes \(\d+ % idle\), [\d.]+ m?s between ranks; 4 replicas takes .* longer: /,
  );
  assertMatch(line, /\+[\d.]+ s of gradients and parameters between ranks/);
});
