/** The whole company in one thread, on the CPU backend: what the supervisor does when things go well, and when not. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { company, inFolder, intercept, tiny } from "./company.ts";

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
    const first = await company(`${folder}/b`, config, { onStep: (step, stop) => step === 4 && stop() });
    assertEquals(first.outcome.outcome, "stopped");
    assert(first.outcome.step < 8, `stopped at step ${first.outcome.step}`);
    const second = await company(`${folder}/b`, config);
    assertEquals(second.outcome, { outcome: "finished", step: 8 });
    assertEquals(second.curve, undisturbed.curve);
  }));
