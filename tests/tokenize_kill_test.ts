/** `troupe tokenize`, killed again and again: the same command goes on, and its output tells nothing of it. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { existsSync } from "node:fs";
import { inFolder, until } from "./processes.ts";

const tokenizer = new URL("../configs/demo/tokenizer.json", import.meta.url).pathname;
const words = "the sea is kind and captain looked at ship went down naïve 日本 long year 1851 of a in to it".split(" ");

/** Documents of a few to some hundred words, as JSON lines and as text. */
function corpus(folder: string): string[] {
  let state = 1;
  const draw = (below: number) => (state = state * 48271 % 0x7fffffff) % below;
  const document = () => Array.from({ length: 3 + draw(300) }, () => words[draw(words.length)]).join(" ");
  const documents = Array.from({ length: 4000 }, document), paths = [`${folder}/a.jsonl`, `${folder}/b.txt`];
  Deno.writeTextFileSync(paths[0]!, documents.map((text) => JSON.stringify({ text }) + "\n").join(""));
  Deno.writeTextFileSync(paths[1]!, documents.toReversed().join("\n\n"));
  return paths;
}

Deno.test("tokenize goes on where SIGKILLs stopped it, and writes the bytes of an undisturbed run, with any number of workers", () =>
  inFolder(async (folder, processes) => {
    const inputs = corpus(folder);
    const begin = (out: string, ...more: string[]) => {
      const common = ["--tokenizer", tokenizer, "--validation", "0.1", "--seed", "3", "--journal_seconds", "0"];
      return processes.start(["tokenize", ...common, "--out", `${folder}/${out}`, ...more, ...inputs], { folder });
    };
    const calm = await begin("calm", "--workers", "0").ended;
    assertEquals(calm.code, 0, calm.err);
    const ofWorkers = await begin("workers", "--workers", "2").ended;
    assertEquals(ofWorkers.code, 0, ofWorkers.err);

    const journal = `${folder}/rough/train/en/data.bin.partial.journal`;
    const documents = (): number => {
      try {
        return (JSON.parse(Deno.readTextFileSync(journal)) as { documents: number }).documents;
      } catch {
        return 0; // not there yet
      }
    };
    for (let kills = 0; kills < 3; kills++) {
      const before = documents(), run = begin("rough", "--workers", String(kills % 2));
      await until(() => documents() > before, "a note of how far it is");
      await processes.signal("KILL", -run.group);
      const { code, err } = await run.ended;
      assert(code !== 0, "it was not at its end already");
      if (kills > 0) assertStringIncludes(err, "Going on after ");
    }
    assert(documents() > 0 && documents() < 8000, `${documents()}`);
    const last = await begin("rough", "--workers", "1").ended;
    assertEquals(last.code, 0, last.err);
    assertStringIncludes(last.err, "of an unfinished run");
    for (const name of ["train/en/data.bin", "train/en/data.bin.meta", "valid/en/data.bin", "valid/en/data.bin.meta"]) {
      const [expected, ...others] = ["calm", "workers", "rough"].map((run) =>
        Deno.readFileSync(`${folder}/${run}/${name}`)
      );
      for (const bytes of others) {
        assert(bytes.every((byte, i) => byte === expected![i]) && bytes.length === expected!.length);
      }
    }
    const summary = (out: string) => out.split("\n").slice(1).join("\n").replaceAll(/(calm|workers|rough)\//g, "");
    assertEquals(summary(last.out), summary(calm.out));
    const left = [...Deno.readDirSync(`${folder}/rough/train/en`)].map(({ name }) => name).sort();
    assertEquals(left, ["data.bin", "data.bin.meta"]);

    // What does not fit is not gone on from.
    const other = begin("rough", "--name", "other", "--workers", "0");
    await until(() => existsSync(journal.replace("data.bin", "other.bin")), "a note of how far it is");
    await processes.signal("KILL", -other.group);
    await other.ended;
    const changed = await begin("rough", "--name", "other", "--workers", "0", "--no_eos").ended;
    assertEquals(changed.code, 0, changed.err);
    assertStringIncludes(
      changed.err,
      "Begun anew: an unfinished run is there, but its files, its tokenizer or its settings",
    );
  }));
