import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { inScratch, troupe } from "./_testing.ts";

Deno.test("main() names the verb that a misspelt one is nearest to, and answers help VERB", async () => {
  assertEquals(await troupe("trian"), {
    code: 2,
    out: "",
    err: 'troupe: there is no verb "trian"; train is the nearest',
  });
  assertStringIncludes((await troupe("xylophone")).err, "there are train, verify, plan");
  assertMatch((await troupe("help", "-x")).err, /^troupe: there is no verb "-x"; there are train, verify, /);
  for (const words of [["--version"], ["help", "--version"]]) { // the launcher hands it to help
    assertMatch((await troupe(...words)).out, /^troupe \d+\.\d+\.\d+ on Deno \d/);
  }
  const { code, out } = await troupe("help", "blackbox");
  assertEquals([code, out], [0, (await troupe("blackbox", "--help")).out]);
});

Deno.test("verbs take the run record as a word or by --config, not two of them", async () => {
  const byWord = await troupe("config", "configs/demo.yaml"),
    byName = await troupe("config", "--config", "configs/demo.yaml");
  assertEquals(byWord, byName);
  const { code, err } = await troupe("plan", "one.yaml", "--config", "two.yaml");
  assertEquals([code, err], [
    2,
    'troupe plan: "one.yaml" and --config two.yaml are two run records; one of them would work',
  ]);
});

Deno.test("plan refuses a table that no device could bind in parts, and sizes that no model has", async () => {
  const huge = await troupe("plan", "--set", "model.vocab_size=2000000000");
  assertEquals(huge.code, 1);
  assertStringIncludes(huge.err, "Cannot ");
  assertStringIncludes(huge.err, "embedding.weight [2000000000,128]");
  const absurd = await troupe("plan", "--set", "model.vocab_size=1000000000000", "--set", "model.num_layers=100000");
  assertEquals(absurd.code, 2);
  assertStringIncludes(absurd.err, "model.vocab_size: 1000000000000 is not");
  assertStringIncludes(absurd.err, "model.num_layers: 100000 is not");
});

Deno.test("blackbox says what of it cannot be: no lines, and a file that was cut off", () =>
  inScratch(async (folder) => {
    const few = await troupe("blackbox", folder, "--lines", "0");
    assertEquals([few.code, few.err], [2, "troupe blackbox: --lines: 0 is not above 0"]);
    await Deno.writeTextFile(`${folder}/blackbox.json`, '{"why": "it ');
    const torn = await troupe("blackbox", folder);
    assertEquals(torn.code, 1);
    assertMatch(torn.err, /^troupe blackbox: Cannot read .*blackbox\.json, which is cut off or altered: [^\n]*$/);
  }));
