/** Signals to a whole run, as terminals, users and schedulers send them: what is saved, and that nobody is left. */
import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import {
  assertNoStackTrace,
  checkpointEntries,
  curve,
  inFolder,
  type Processes,
  rankOf,
  ranks,
  tinyRecord,
  until,
} from "./processes.ts";
import { type Undisturbed, undisturbed } from "./undisturbed.ts";

const totalSteps = 60;

const recordOf = (folder: string, changes: Record<string, Record<string, unknown>> = {}) =>
  tinyRecord(folder, {
    model: { vocab_size: 4096 }, // a few milliseconds a step, so that signals arrive between the first and the last
    data: { total_steps: totalSteps },
    ckpt: { checkpoint_every: 25 },
    ...changes,
  });

const train = (folder: string, processes: Processes, changes: Record<string, Record<string, unknown>> = {}) =>
  processes.start(["train", "--config", recordOf(folder, changes), "--backend", "cpu", "--json"], { folder });

/** Nobody of the process group is left. */
async function assertGone(processes: Processes, pids: readonly number[]): Promise<void> {
  for (const pid of pids) await until(async () => !await processes.alive(pid), `the end of process ${pid}`);
}

let kept: Undisturbed | undefined;

/** What a run that nothing interrupts comes to: the first test that asks for it makes it. */
const calmRun = async (folder: string) => kept ??= await undisturbed(recordOf(folder), 1);

Deno.test("train() saves at Ctrl-C and at SIGTERM to the whole group, ends with 0, and the same command goes on to the same curve and weights", () =>
  inFolder(async (folder, processes) => {
    const calm = await calmRun(folder);
    const lines: string[] = [];
    for (const signal of ["INT", "TERM"] as const) {
      const run = train(folder, processes), rank = await rankOf(folder);
      const { root } = ranks(folder)!;
      await run.out.until((text) => text.split("\n").length > 8, "some steps");
      await processes.signal(signal, -run.group);
      const ended = await run.ended;
      assertEquals(ended.code, 0, ended.err);
      assertNoStackTrace(ended);
      assertStringIncludes(ended.err, "Stopping after this step and saving");
      const [, step] = /^Stopped after step (\d+)\. The same command goes on from there\.$/m.exec(ended.err) ?? [];
      assert(Number(step) < totalSteps && Deno.statSync(`${folder}/checkpoints/${step}/COMMITTED`).isFile, ended.err);
      await assertGone(processes, [root, rank]);
      lines.push(ended.out);
    }
    const ended = await train(folder, processes).ended;
    assertEquals(ended.code, 0, ended.err);
    assertMatch(ended.err, /resumed from step \d+/);
    assertEquals(curve(folder), calm.curve);
    assertEquals(checkpointEntries(folder, totalSteps), calm.entries);
    const told = [...lines, ended.out].join("").trim().split("\n").map((line) => JSON.parse(line).step);
    assertEquals(told, calm.curve.map(({ step }) => step), "no step was done twice");
  }));

Deno.test("train() stops at once at a second Ctrl-C, also while the rank hears nothing", () =>
  inFolder(async (folder, processes) => {
    const run = train(folder, processes), rank = await rankOf(folder);
    const { root } = ranks(folder)!;
    await run.out.until((text) => text !== "", "a first step");
    await processes.signal("STOP", rank);
    await processes.signal("INT", -run.group);
    await run.err.until((text) => text.includes("Stopping after this step"), "the first answer");
    // Soon after the first it is taken for the same, sent on by a parent: a user presses until it is heard.
    await until(async () => {
      await processes.signal("INT", -run.group);
      return !await processes.alive(rank);
    }, "the rank's end");
    const ended = await run.ended;
    assertEquals(ended.code, 130, ended.err);
    assertNoStackTrace(ended);
    assertMatch(
      ended.err,
      /^Stopped after step \d+\. Nothing was saved: the same command begins anew\.$/m,
    );
    await assertGone(processes, [root, rank]);
  }));

Deno.test("a rank outlives its killed root by seconds only, and the next start resumes", () =>
  inFolder(async (folder, processes) => {
    const calm = await calmRun(folder);
    const run = train(folder, processes), rank = await rankOf(folder);
    const { root } = ranks(folder)!;
    await run.out.until((text) => text.split("\n").length > 30, "a checkpoint");
    assert(await processes.signal("KILL", root));
    await assertGone(processes, [root, rank]);
    const ended = await train(folder, processes).ended;
    assertEquals(ended.code, 0, ended.err);
    assertStringIncludes(ended.err, "resumed from step 25");
    assertEquals(curve(folder), calm.curve);
    assertEquals(checkpointEntries(folder, totalSteps), calm.entries);
  }));

Deno.test("a rank whose thread is busy for good is gone soon after its root as well", () =>
  inFolder(async (folder, processes) => {
    const plugin = `${folder}/busy.ts`, word = `${folder}/now`;
    Deno.writeTextFileSync(
      plugin,
      `if (Deno.args[0] === "rank") setInterval(() => {
         try { Deno.statSync("${word}"); } catch { return; }
         console.error("busy");
         for (;;); // never again a turn for anybody
       }, 5);`,
    );
    const changes = { data: { total_steps: 1_000_000 }, runtime: { plugins: [plugin] } };
    const run = train(folder, processes, changes), rank = await rankOf(folder);
    const { root } = ranks(folder)!;
    await run.out.until((text) => text !== "", "a first step");
    Deno.writeTextFileSync(word, "");
    await run.err.until((text) => text.includes("busy"), "the loop");
    await processes.signal("KILL", root);
    assert(await processes.alive(rank));
    await assertGone(processes, [root, rank]);
  }));
