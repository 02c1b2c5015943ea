/** The whole company in one thread, on the CPU backend: what the supervisor does when things go well, and when not. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { companyTree, membersOf } from "../actors/company.ts";
import { checkpointManager } from "../actors/checkpoint_manager.ts";
import { describeTree, testRuntime } from "../actors/runtime/mod.ts";
import { runFolderAt } from "../src/observe/run_folder.ts";
import { company, crashing, inFolder, intercept, tiny } from "./company.ts";

/** Throws at the so-manieth message of this kind. */
function at(kind: string, times: readonly number[], words: string) {
  let count = 0;
  return (received: string) => {
    if (received === kind && times.includes(++count)) throw new Error(words);
  };
}

Deno.test("docs/architecture.md shows the supervision tree as it is", () => {
  const tree = companyTree({
    monitor: { folder: runFolderAt("run"), totalSteps: 1, title: "", json: false },
    checkpoints: checkpointManager({ folder: "run", keepLast: 0, config: "", layout: {} }),
    supervisor: {
      config: tiny("run", { runtime: { max_restarts: 5 } }),
      runFolder: "run",
      cpuFallback: false,
      rank: () => {
        throw new TypeError("nothing is started here");
      },
    },
  }, membersOf(testRuntime()));
  const docs = Deno.readTextFileSync(new URL("../docs/architecture.md", import.meta.url));
  assertStringIncludes(docs, `\n${describeTree("company", tree)}\n`);
});

Deno.test("a monitor that crashes is started again, goes on in its files, and the ranks train on", () =>
  inFolder(async (folder) => {
    const { outcome, curve, shown, folder: run } = await company(
      folder,
      tiny(folder, { runtime: { max_restarts: 2 } }),
      {
        onStep(step, { monitor }) {
          if (step === 3 || step === 6) monitor.send({ kind: "alert", text: `nobody takes this of step ${step}` });
        },
        onAlert: (text) => {
          throw new Error(`cannot deliver "${text}"`);
        },
      },
    );
    assertEquals(outcome, { outcome: "finished", step: 8 });
    assertStringIncludes(
      shown,
      `company: monitor crashed: Error: cannot deliver "nobody takes this of step 3"; it was started`,
    );
    assertStringIncludes(
      shown,
      `company: monitor crashed: Error: cannot deliver "nobody takes this of step 6"; it was started`,
    );
    assert(!shown.includes("starting it again"), "the rank lives on");
    const steps = curve.map(({ step }) => step);
    assertEquals(steps, [...new Set(steps)].sort(), "each once, in order");
    for (const step of [0, 1, 7]) assert(steps.includes(step), `${step} of ${steps}`);
    assertStringIncludes(Deno.readTextFileSync(run.lossPlot), "<svg");
  }));

Deno.test("a monitor that crashes again and again ends the run with a sentence that names it", () =>
  inFolder(async (folder) => {
    const { outcome } = await company(folder, tiny(folder, { runtime: { max_restarts: 1 } }), {
      onStep: (_, { monitor }) => monitor.send({ kind: "alert", text: "again" }),
      onAlert: () => {
        throw new Error("nobody is there");
      },
    });
    assertEquals(outcome, {
      outcome: "failed",
      step: 0,
      reason: "The monitor crashed: Error: nobody is there; restarts are used up: at most 1 within 3600 s; " +
        "the same command goes on",
    });
  }));

Deno.test("a checkpoint manager that crashes in a save loses that save alone, and says so", () =>
  inFolder(async (folder) => {
    const undisturbed = await company(`${folder}/a`, tiny(`${folder}/a`));
    const { outcome, curve, shown } = await company(`${folder}/b`, tiny(`${folder}/b`), {
      checkpoints: (spec) => crashing(spec, at("commit", [1], "the disk was pulled out")),
    });
    assertEquals(outcome, { outcome: "finished", step: 8 });
    assertEquals(curve, undisturbed.curve);
    assertStringIncludes(
      shown,
      "ALERT Checkpoint of step 3 was not saved: the checkpoint manager crashed: Error: the disk was pulled out",
    );
    assertStringIncludes(
      shown,
      "company: checkpoint manager crashed: Error: the disk was pulled out; it was started again",
    );
    const saved = [...Deno.readDirSync(`${folder}/b/checkpoints`)].map(({ name }) => name);
    assertEquals(saved.filter((name) => /^\d+$/.test(name)).sort(), ["6", "8"]);
  }));

Deno.test("a data loader that crashes is named, and the curve equals the undisturbed one bit for bit", () =>
  inFolder(async (folder) => {
    const undisturbed = await company(`${folder}/a`, tiny(`${folder}/a`));
    const { outcome, curve, shown } = await company(`${folder}/b`, tiny(`${folder}/b`), {
      loader: (spec, attempt) => attempt > 1 ? spec : crashing(spec, at("next", [5], "the disk was pulled out")),
    });
    assertEquals(outcome, { outcome: "finished", step: 8 });
    assertEquals(curve, undisturbed.curve);
    assertStringIncludes(
      shown,
      "ALERT Rank 0 crashed with 4 steps done: its data loader crashed: Error: the disk was pulled out; starting it again",
    );
  }));

Deno.test("supervisor() runs to the end: every step once, checkpoints where due, a curve that was drawn", () =>
  inFolder(async (folder) => {
    const { outcome, curve, shown } = await company(folder, tiny(folder));
    assertEquals(outcome, { outcome: "finished", step: 8 });
    assertEquals(curve.map(({ step }) => step), [0, 1, 2, 3, 4, 5, 6, 7]);
    const saved = [...Deno.readDirSync(`${folder}/checkpoints`)].map(({ name }) => name).sort();
    assertEquals(saved, ["3", "6", "8"]);
    assertStringIncludes(shown, "step 8/8");
    assert(Deno.statSync(`${folder}/tiny/${[...Deno.readDirSync(`${folder}/tiny`)][0]!.name}/metrics.jsonl`).size > 0);
  }));

Deno.test("supervisor() starts a crashed rank again, and the curve equals the undisturbed one bit for bit", () =>
  inFolder(async (folder) => {
    const undisturbed = await company(`${folder}/a`, tiny(`${folder}/a`));
    const crashed = await company(`${folder}/b`, tiny(`${folder}/b`), {
      wrap: (backend, attempt) => {
        let updates = 0;
        return intercept(backend, (kernel) => {
          if (kernel === "adamw" && ++updates === (attempt === 1 ? 5 : attempt === 2 ? 2 : Infinity)) {
            throw new Error(`the device fell off the bus in attempt ${attempt}`);
          }
        });
      },
    });
    assertEquals(crashed.outcome, { outcome: "finished", step: 8 });
    assertEquals(crashed.curve, undisturbed.curve);
    assertStringIncludes(crashed.shown, "the device fell off the bus in attempt 2");
  }));

Deno.test("supervisor() gives up on a failure that comes back at the same step", () =>
  inFolder(async (folder) => {
    const { outcome } = await company(folder, tiny(folder), {
      wrap: (backend) =>
        intercept(backend, (kernel) => {
          if (kernel === "adamw") throw new Error("always the same");
        }),
    });
    assertEquals(outcome.outcome, "failed");
    assertStringIncludes(outcome.reason!, "always the same");
    assertStringIncludes(outcome.reason!, "starting again does not help");
  }));

Deno.test("supervisor() ends with a sentence when the data cannot be read", () =>
  inFolder(async (folder) => {
    const config = tiny(folder, {
      data: { seq_len: 16, micro_bsz: 1, total_steps: 8, train_folder: `${folder}/nothing` },
    });
    const { outcome } = await company(folder, config);
    assertEquals(outcome.outcome, "failed");
    assertStringIncludes(outcome.reason!, `${folder}/nothing`);
  }));

Deno.test("supervisor() saves when told to stop, and a second run goes on with the same tokens", () =>
  inFolder(async (folder) => {
    const undisturbed = await company(`${folder}/a`, tiny(`${folder}/a`));
    const config = tiny(`${folder}/b`);
    const first = await company(`${folder}/b`, config, {
      onStep: (step, { supervisor }) => step === 4 && supervisor.send({ kind: "stop" }),
    });
    assertEquals(first.outcome.outcome, "stopped");
    assert(first.outcome.step < 8, `stopped at step ${first.outcome.step}`);
    const second = await company(`${folder}/b`, config);
    assertEquals(second.outcome, { outcome: "finished", step: 8 });
    assertEquals(second.curve, undisturbed.curve);
  }));
