import { assert, assertEquals, assertMatch } from "@std/assert";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Found } from "./tune.ts";
import { openTuningCache, readTuning, tuningFolder } from "./tuning_cache.ts";

const answer = (choice: string): Found => ({
  choice,
  tried: { [choice]: { seconds: 1e-4 }, bad: { refused: "wrong" } },
});
const answers = (...names: string[]) => new Map(names.map((name) => [name, answer(`form of ${name}`)]));

async function inFolder(run: (folder: string, notices: string[], onNotice: (text: string) => void) => unknown) {
  const parent = await Deno.makeTempDir(), notices: string[] = [];
  try {
    await run(join(parent, "tuning"), notices, (text) => notices.push(text));
  } finally {
    await Deno.remove(parent, { recursive: true });
  }
}

Deno.test("the tuner's cache keeps what was found, by adapter", () =>
  inFolder((folder, notices, onNotice) => {
    const options = { folder, onNotice };
    assertEquals(readTuning(options), {});
    openTuningCache("one", options).save(answers("a", "b"));
    openTuningCache("one", options).save(answers("c"));
    openTuningCache("two", options).save(new Map([["a", answer("another")]]));
    assertEquals(openTuningCache("one", options).choices, Object.fromEntries(answers("a", "b", "c")));
    assertEquals(openTuningCache("three", options).choices, {});
    assertEquals(readTuning(options), {
      one: { a: "form of a", b: "form of b", c: "form of c" },
      two: { a: "another" },
    });
    assertEquals(notices, []);
    assertEquals([...Deno.readDirSync(folder)].length, 2);
  }));

Deno.test("a damaged file of the tuner, or another version's, counts as none, and it is said", () =>
  inFolder((folder, notices, onNotice) => {
    const options = { folder, onNotice };
    openTuningCache("one", options).save(answers("a"));
    const path = join(folder, [...Deno.readDirSync(folder)][0]!.name), whole = Deno.readTextFileSync(path);
    const damaged = [whole.slice(0, whole.length / 2), "", "[]", `{"format": 1}`, whole.replace(/"form of a"/, "7")];
    const other = [whole.replace(/"format": 1/, `"format": 2`)];
    const older = [...other, whole.replace(/"program": "[^"]*"/, `"program": "0.0.1 on Deno 1.0.0"`)];
    for (
      const [texts, sentence] of [[damaged, /is no file of the tuner, or a damaged one/], [
        older,
        /was made by Troupe/,
      ]] as const
    ) {
      for (const text of texts) {
        Deno.writeTextFileSync(path, text);
        assertEquals(openTuningCache("one", options).choices, {});
        assertEquals(readTuning(options), {});
        assertEquals(notices.length, 2);
        notices.splice(0).forEach((notice) => assertMatch(notice, sentence));
        const cache = openTuningCache("one", options);
        cache.save(answers("b"));
        notices.length = 0;
        assertEquals(Object.keys(openTuningCache("one", options).choices), ["b"]); // anew
        assertEquals(notices, []);
      }
    }
  }));

Deno.test("a folder that cannot be written keeps nothing, says so, and stops nobody", () =>
  inFolder((folder, notices, onNotice) => {
    Deno.writeTextFileSync(folder, "a file, where a folder should be");
    const cache = openTuningCache("one", { folder, onNotice });
    cache.save(answers("a"));
    assertMatch(notices.at(-1)!, /could not be kept in .*; they hold for this run/);
    assertEquals(readTuning({ folder, onNotice }), {});
    notices.length = 0;
    openTuningCache("one", { folder: "", onNotice }).save(answers("a"));
    assertMatch(notices[0]!, /neither XDG_CACHE_HOME nor HOME/);
  }));

Deno.test("tuningFolder() is in the user's cache", () => {
  const from = (variables: Record<string, string>) => tuningFolder((name) => variables[name]);
  assertEquals(from({ HOME: "/home/a" }), "/home/a/.cache/troupe/tuning");
  assertEquals(from({ HOME: "/home/a", XDG_CACHE_HOME: "/c" }), "/c/troupe/tuning");
  assertEquals(from({}), undefined);
});

Deno.test("processes that write the tuner's cache at once leave a whole file", () =>
  inFolder(async (folder, notices, onNotice) => {
    const code = `
      import { openTuningCache } from ${JSON.stringify(new URL("./tuning_cache.ts", import.meta.url).href)};
      const [folder, name] = Deno.args;
      for (let i = 0; i < 30; i++) {
        const cache = openTuningCache("one", { folder, onNotice: (text) => { throw new Error(text); } });
        cache.save(new Map([[name + i, { choice: name.repeat(2000), tried: {} }]]));
      }`;
    await Deno.mkdir(folder);
    const file = join(folder, "..", "writer.ts"), config = fileURLToPath(new URL("../../deno.json", import.meta.url));
    await Deno.writeTextFile(file, code);
    const results = await Promise.all(["a", "b", "c"].map((name) =>
      new Deno.Command("deno", {
        args: [
          "run",
          "--quiet",
          "--no-check",
          `--config=${config}`,
          "--allow-read",
          "--allow-env",
          `--allow-write=${folder}`,
          file,
          folder,
          name,
        ],
        stdout: "piped",
        stderr: "piped",
      }).output()
    ));
    for (const { success, stderr } of results) assert(success, new TextDecoder().decode(stderr));
    const { choices } = openTuningCache("one", { folder, onNotice });
    assertEquals(notices, []);
    // Whoever renamed last has all of its own; what others wrote in the same moment may be left out.
    assert(["a", "b", "c"].some((name) => Object.keys(choices).filter((key) => key.startsWith(name)).length > 0));
    for (const [key, { choice }] of Object.entries(choices)) assertEquals(choice, key[0]!.repeat(2000));
    assertEquals([...Deno.readDirSync(folder)].length, 1);
  }));
