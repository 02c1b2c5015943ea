/** A rank's process killed at any moment: the run goes on, and nothing in its records tells. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import {
  assertNoStackTrace,
  checkpointEntries,
  curve,
  inFolder,
  rankOf,
  type Started,
  tinyRecord,
  until,
} from "./processes.ts";
import { random } from "./random.ts";
import { type Undisturbed, undisturbed } from "./undisturbed.ts";

const totalSteps = 130;

/** A bigger vocabulary makes steps and saves long enough to be hit. */
const record = (folder: string) =>
  tinyRecord(folder, {
    model: { vocab_size: 4096 },
    data: { total_steps: totalSteps },
    ckpt: { checkpoint_every: 4 },
    runtime: { max_restarts: 50 },
  });

/** Whole lines on standard output: steps told, those done twice counted twice. */
const steps = ({ out }: Started) => out.text.split("\n").length - 1;

const pause = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Folders of saves that were begun and have no mark yet, or never got one. */
function unfinished(folder: string): string[] {
  const names = (path: string) => {
    try {
      return [...Deno.readDirSync(path)].map(({ name }) => name);
    } catch {
      return []; // it was there a moment ago
    }
  };
  return names(`${folder}/checkpoints`).filter((name) =>
    name.includes(".tmp-") && !names(`${folder}/checkpoints/${name}`).includes("COMMITTED")
  );
}

Deno.test("train() goes on after SIGKILLs of its rank at random moments, while starting, training and saving: the curve and the weights are those of an undisturbed run", () =>
  inFolder(async (rough, processes) => {
    const config = record(rough), calm = await undisturbed(config, 1), next = random(20240131);
    const run = processes.start(["train", "--config", config, "--backend", "cpu", "--json"], { folder: rough });
    await rankOf(rough);
    const began = performance.now();
    await run.out.until((text) => text !== "", "a first step");
    const startMs = performance.now() - began;
    let attempt = 0;
    const kill = async () => {
      assert(
        await processes.signal("KILL", await rankOf(rough, ++attempt)),
        `the rank was there to be killed:\n${run.err.text}`,
      );
    };
    for (let i = 0; i < 10; i++) {
      await rankOf(rough, attempt + 1);
      const base = steps(run), wait = Math.floor(next() * 9); // none: while it starts
      if (wait > 0) await run.out.until(() => steps(run) >= base + wait, `${wait} steps`);
      await pause(next() * (wait > 0 ? 20 : startMs));
      await kill();
    }
    // Twice in the middle of a save, made sure of by stopping the rank first.
    for (let hits = 0; hits < 2;) {
      const pid = await rankOf(rough, attempt + 1), before = new Set(unfinished(rough));
      const saving = () => unfinished(rough).some((name) => !before.has(name));
      await until(saving, "a save");
      await processes.signal("STOP", pid);
      if (saving()) {
        await kill();
        hits++;
      } else await processes.signal("CONT", pid);
    }
    const last = await rankOf(rough, attempt + 1);
    const ended = await run.ended;
    assertEquals(ended.code, 0, ended.err);
    assertNoStackTrace(ended);
    assertEquals(ended.err.match(/^ALERT Rank 0 was killed by SIGKILL .*; starting it again/gm)?.length, 12, ended.err);
    assertStringIncludes(ended.err, "Rank 0 is back and goes on from step ");

    assertEquals(calm.curve.length, totalSteps);
    assertEquals(curve(rough), calm.curve);
    assertEquals(checkpointEntries(rough, totalSteps), calm.entries);
    assert(!await processes.alive(last), "the last rank is gone");
  }));

Deno.test("train() goes on after SIGKILLs of its rank on WebGPU as well", () =>
  inFolder(async (folder, processes) => {
    const config = tinyRecord(folder, { data: { total_steps: 40 }, ckpt: { checkpoint_every: 7 } });
    let calm: Undisturbed;
    try {
      calm = await undisturbed(config, 1, { backend: "webgpu" });
    } catch (error) {
      if (!(error as Error).message.includes("no adapter was found")) throw error;
      return console.log("skipped: no adapter was found");
    }
    const run = processes.start(["train", "--config", config, "--backend", "webgpu", "--json"], { folder });
    for (const attempt of [1, 2]) {
      const rank = await rankOf(folder, attempt), base = steps(run);
      await run.out.until(() => steps(run) >= base + 9 * attempt, "some steps");
      assert(await processes.signal("KILL", rank), `the rank was there to be killed:\n${run.err.text}`);
    }
    const ended = await run.ended;
    assertEquals(ended.code, 0, ended.err);
    assertEquals(curve(folder), calm.curve);
    assertEquals(checkpointEntries(folder, 40), calm.entries);
  }));
