/** What fields of the run record ask of the company besides training: where to begin, when to save and stop, what to write. */
import { assert, assertEquals, assertMatch, assertNotEquals, assertStringIncludes } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import { openCheckpoint } from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import { Session } from "../src/train/session.ts";
import { exportHuggingFace } from "../src/train/weights.ts";
import { company, inFolder, intercept, tiny } from "./company.ts";

const foldersIn = (path: string) =>
  [...Deno.readDirSync(path)].filter(({ name }) => /^\d/.test(name)).map(({ name }) => name).sort();

/** The model of a checkpoint as a Hugging Face folder. */
async function exportCheckpoint(config: ResolvedConfig, checkpoint: string, folder: string): Promise<void> {
  using backend = await openBackend("cpu");
  using session = await Session.open(config, { backend });
  using saved = openCheckpoint(checkpoint);
  session.restore(saved, ["model"]);
  await exportHuggingFace(session.trainer.model, folder);
}

/** Throws before the given update of the first attempt, as a device does that is lost. */
const crashAt = (update: number) => ({
  wrap: (backend: Parameters<typeof intercept>[0], attempt: number) => {
    let updates = 0;
    return intercept(backend, (kernel) => {
      if (kernel === "adamw" && attempt === 1 && ++updates === update) throw new Error("the device is gone");
    });
  },
});

Deno.test("ckpt.load_ckpt_info begins from the weights of a Hugging Face folder, as from a checkpoint's model", () =>
  inFolder(async (folder) => {
    const first = tiny(`${folder}/a`);
    const { curve: fresh } = await company(`${folder}/a`, first);
    await exportCheckpoint(first, `${folder}/a/checkpoints/8`, `${folder}/hf`);

    const begin = (name: string, ckpt: Record<string, unknown>) =>
      company(`${folder}/${name}`, tiny(`${folder}/${name}`, { ckpt }));
    const fromHf = await begin("b", { load_ckpt_info: { path: `local:${folder}/hf`, ckpt_type: "hf" } });
    const fromModel = await begin("c", { load_model_only_folder: `${folder}/a/checkpoints` });
    assertEquals(fromHf.outcome, { outcome: "finished", step: 8 });
    assertStringIncludes(fromHf.shown, `tiny: begins with the model of Hugging Face folder ${folder}/hf (`);
    assertStringIncludes(
      fromModel.shown,
      `tiny: begins with the model of step 8 (${folder}/a/checkpoints/8)`,
    );
    assertEquals(fromHf.curve, fromModel.curve);
    assertNotEquals(fromHf.curve, fresh);
    // The same first batch, seen by trained weights.
    assert(fromHf.curve[0]!.loss < fresh[0]!.loss, `${fromHf.curve[0]!.loss} against ${fresh[0]!.loss}`);
  }));

Deno.test("ckpt.load_ckpt_info refuses weights of another model, naming each difference", () =>
  inFolder(async (folder) => {
    const first = tiny(`${folder}/a`, { data: { total_steps: 1 } });
    await company(`${folder}/a`, first);
    await exportCheckpoint(first, `${folder}/a/checkpoints/1`, `${folder}/hf`);
    const reasonOf = async (info: Record<string, unknown>, model: Record<string, unknown>) => {
      const config = tiny(`${folder}/b`, { model, ckpt: { load_ckpt_info: info } });
      const { outcome } = await company(`${folder}/b`, config);
      assertEquals(outcome.outcome, "failed");
      return outcome.reason!;
    };
    const hf = { path: `${folder}/hf`, ckpt_type: "hf" }, internevo = { path: `${folder}/a/checkpoints/1` };
    const reason = await reasonOf(hf, { num_layers: 2, rope_base: 5000 });
    assertStringIncludes(reason, `another model than ${folder}/hf/config.json`);
    assertStringIncludes(reason, "num_hidden_layers is 1 there, 2 in the record");
    assertStringIncludes(reason, "rope_theta is 10000 there, 5000 in the record");
    assertStringIncludes(await reasonOf(hf, { norm_head: true }), "model.norm_head is true");
    assertStringIncludes(
      await reasonOf(internevo, { vocab_size: 128 }),
      "parameter embedding.weight is [256,8] there, [128,8] in this model",
    );
    assertStringIncludes(await reasonOf(internevo, { num_layers: 2 }), "layers.1.attention_norm.weight is not there");
    assertStringIncludes(await reasonOf({ path: `${folder}/hf` }, {}), "ckpt_type: hf in ckpt.load_ckpt_info would");
    assertStringIncludes(await reasonOf({ path: `${folder}/none` }, {}), `Cannot load ${folder}/none`);
  }));

Deno.test("ckpt.load_ckpt_info with all goes on with another run, bit for bit; its parts go on with less", () =>
  inFolder(async (folder) => {
    const { curve } = await company(`${folder}/a`, tiny(`${folder}/a`));
    const path = `${folder}/a/checkpoints/3`;
    const begin = async (name: string, ckpt: Record<string, unknown>) =>
      await company(`${folder}/${name}`, tiny(`${folder}/${name}`, { ckpt }));

    const all = await begin("b", { load_ckpt_info: { path, content: ["all"] } });
    assertStringIncludes(all.shown, `tiny: begins with everything of step 3 (${path})`);
    assertEquals(all.curve, curve.slice(3));

    // Old form: no schedule. The counts go on, and the rate begins anew.
    const parts = await begin("c", { load_ckpt_folder: path });
    assertStringIncludes(parts.shown, "begins with the model, sampler and optimizer of step 3");
    assertEquals(parts.curve.map(({ step }) => step), [3, 4, 5, 6, 7]);
    assertEquals(parts.curve[0], all.curve[0], "same data, same weights, and Adam's state does not show yet");
    const noOptimizer = await begin("d", { load_ckpt_folder: path, load_optimizer: false });
    assertEquals(noOptimizer.curve[0], all.curve[0]);
    assertNotEquals(noOptimizer.curve[1], parts.curve[1]);

    const noSampler = await begin("e", { load_ckpt_info: { path, content: ["model", "optimizer", "scheduler"] } });
    assertEquals(noSampler.curve.map(({ step }) => step), [3, 4, 5, 6, 7]);
    assertNotEquals(noSampler.curve[0]!.loss, all.curve[0]!.loss, "the data begins anew");
  }));

Deno.test("ckpt.auto_resume goes before load_ckpt_info where the run has a checkpoint of its own", () =>
  inFolder(async (folder) => {
    await company(`${folder}/a`, tiny(`${folder}/a`));
    const ckpt = { load_ckpt_info: { path: `${folder}/a/checkpoints/6`, content: ["model"] } };
    const config = tiny(`${folder}/b`, { ckpt });
    const first = await company(`${folder}/b`, config, {
      onStep: (step, { supervisor }) => step === 4 && supervisor.send({ kind: "stop" }),
    });
    assertStringIncludes(first.shown, "begins with the model of step 6");
    const second = await company(`${folder}/b`, config);
    assertMatch(second.shown, /has a checkpoint of its own, so .*a\/checkpoints\/6 is not loaded/);
    assertMatch(second.shown, /resumed from step [45] /);
    const whole = await company(`${folder}/c`, tiny(`${folder}/c`, { ckpt }));
    assertEquals(second.curve, whole.curve);
  }));

Deno.test("ckpt.auto_resume: false begins anew, and after a failure never goes on with an older run's checkpoint", () =>
  inFolder(async (folder) => {
    await company(folder, tiny(folder, { adam: { lr: 1e-3 } }));
    const config = tiny(folder, { ckpt: { auto_resume: false } });
    const undisturbed = await company(`${folder}/other`, tiny(`${folder}/other`));
    for (const [update, from] of [[2, "from the beginning"], [5, "from step 3"]] as const) {
      const run = await company(folder, config, { ...crashAt(update), startTime: update * 1000 });
      assertStringIncludes(run.shown, "tiny: new run");
      assertStringIncludes(run.shown, `Rank 0 is back and goes on ${from}`);
      assertEquals(run.curve, undisturbed.curve);
    }
  }));

Deno.test("ckpt.load_given_ckpt is the opposite of auto_resume", () => {
  assertEquals(tiny("/x", { ckpt: { load_given_ckpt: true } }).ckpt.auto_resume, false);
  assertEquals(tiny("/x", { ckpt: { load_given_ckpt: false } }).ckpt.auto_resume, true);
  assertEquals(tiny("/x", { ckpt: { load_given_ckpt: true, auto_resume: true } }).ckpt.auto_resume, true);
});

Deno.test("ckpt.stop_file_path saves and stops, or saves and goes on, at the step that people wrote", () =>
  inFolder(async (folder) => {
    const stop_file_path = `${folder}/stop`;
    Deno.writeTextFileSync(stop_file_path, "1"); // of the last run: begins with 0 again
    const writes = (words: Record<number, string>) => ({
      onStep: (step: number) => words[step] && Deno.writeTextFileSync(stop_file_path, words[step]),
    });
    const config = tiny(folder, { ckpt: { stop_file_path, checkpoint_every: 100 } });
    const stopped = await company(folder, config, writes({ 2: "-3\n", 4: "soon", 5: "6" }));
    assertEquals(stopped.outcome, { outcome: "stopped", step: 6 });
    assertEquals(foldersIn(`${folder}/checkpoints`), ["3", "6"]);
    const alerts = stopped.shown.split("\n").filter((line) => line.startsWith("ALERT"));
    assertEquals(alerts.length, 3, stopped.shown);
    assertStringIncludes(alerts[0]!, "the run saves a checkpoint and goes on at step 3");
    assertMatch(alerts[1]!, /it must hold one integer.*"soon"; the run goes on/);
    assertStringIncludes(alerts[2]!, "the run saves a checkpoint and stops at step 6");

    const resumed = await company(folder, config);
    assertEquals(resumed.outcome, { outcome: "finished", step: 8 });
    assertEquals(Deno.readTextFileSync(stop_file_path), "0\n");
  }));

Deno.test("ckpt.stop_file_path that cannot be made ends the run with a sentence", () =>
  inFolder(async (folder) => {
    const config = tiny(folder, { ckpt: { stop_file_path: `${folder}/none/stop` } });
    const { outcome } = await company(folder, config);
    assertEquals(outcome.outcome, "failed");
    assertStringIncludes(outcome.reason!, `${folder}/none/stop`);
  }));

Deno.test("ckpt.oss_snapshot_freq keeps two snapshots, and a run goes on from the newer of snapshots and checkpoints", () =>
  inFolder(async (folder) => {
    const ckpt = { oss_snapshot_freq: 2, checkpoint_every: 5 };
    const undisturbed = await company(`${folder}/a`, tiny(`${folder}/a`, { ckpt }));
    assertEquals(foldersIn(`${folder}/a/checkpoints`), ["5", "8"]);
    assertEquals(foldersIn(`${folder}/a/checkpoints/snapshot`), ["4", "6"]);
    const crashed = await company(`${folder}/b`, tiny(`${folder}/b`, { ckpt }), crashAt(8));
    assertStringIncludes(crashed.shown, `goes on from step 6 (${folder}/b/checkpoints/snapshot/6)`);
    assertEquals(crashed.curve, undisturbed.curve);
    // Damage to the newest costs the steps since the one before, of either kind.
    await Deno.remove(`${folder}/b/checkpoints/8`, { recursive: true });
    await Deno.writeTextFile(`${folder}/b/checkpoints/snapshot/6/manifest.json`, "{}");
    const damaged = await company(`${folder}/b`, tiny(`${folder}/b`, { ckpt }));
    assertMatch(damaged.shown, /resumed from step 5 \(.*checkpoints\/5\)/);
    assertEquals(damaged.curve, undisturbed.curve);
  }));

Deno.test("the log file has notices, alerts, step records and memory, with time and place", () =>
  inFolder(async (folder) => {
    const data = { empty_cache_and_diag_interval: 7, valid_every: 4, valid_micro_num: 1 };
    const run = await company(folder, tiny(folder, { data }), crashAt(2));
    const lines = Deno.readTextFileSync(`${run.folder.logs}/main_dp=0_tp=0_pp=0`).trimEnd().split("\n");
    for (const line of lines) {
      assertMatch(line, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\t(INFO|WARNING) monitor\.ts:\d+ in (handle|alert) -- ./);
    }
    const words = lines.map((line) => line.slice(line.indexOf("\t") + 1).replace(/ .*? -- /, " "));
    const matching = (pattern: RegExp) => words.filter((line) => pattern.test(line));
    assertEquals(matching(/^INFO tiny: new run/).length, 1);
    assertEquals(
      matching(/^WARNING Rank 0 crashed with 1 step done: .*the device is gone/).length,
      1,
      words.join("\n"),
    );
    // The step before the crash is there twice, as it was done twice.
    assertEquals(matching(/^INFO tflops=\S+ step=/).map((line) => Number(/ step=(\d+) /.exec(line)![1])), [
      0,
      ...Array(8).keys(),
    ]);
    assertEquals(matching(/ bwd_time=/), []);
    assertEquals(matching(/^INFO Validation at step (4|8): /).length, 2);
    const memory = matching(/memory before batch \d+: \S+ \SiB allocated on the device, \S+ \SiB planned/);
    const batches = memory.map((line) => Number(/batch (\d+)/.exec(line)![1]));
    assertEquals(batches, [0, 1, 0, 1, 2, 3, 4, 5, 7]);
    assert(!run.shown.includes("memory before"), "not on the display");
  }));

Deno.test("enable_tb writes event files under the rank's name, after those of the run that is continued", () =>
  inFolder(async (folder) => {
    const rank = "main_dp=0_tp=0_pp=0", old = `${folder}/old`, board = `${folder}/board`;
    const files = (path: string) => [...Deno.readDirSync(`${path}/${rank}`)].map(({ name }) => name).sort();
    await company(`${folder}/a`, tiny(`${folder}/a`), { tensorboard: { folder: old } });
    await company(`${folder}/b`, tiny(`${folder}/b`), {
      tensorboard: { folder: board, resumeFrom: old, queueMaxLength: 3, texts: { cmd: "troupe train" } },
    });
    assertEquals(files(old).length, 1);
    assertEquals(files(board).length, 2);
    assert(files(board).includes(files(old)[0]!));
    const written = files(board).find((name) => name !== files(old)[0])!;
    const text = new TextDecoder("latin1").decode(Deno.readFileSync(`${board}/${rank}/${written}`));
    for (const tag of ["cmd", "troupe train", "loss", "grad_norm/0_default", "lr"]) assertStringIncludes(text, tag);

    const { outcome, shown } = await company(`${folder}/c`, tiny(`${folder}/c`), {
      tensorboard: { resumeFrom: `${folder}/none` },
    });
    assertEquals(outcome.outcome, "finished");
    assertStringIncludes(shown, "ALERT Cannot copy the event files of resume_tb_folder");
  }));

Deno.test("--profiling closes its trace where a run ends among the traced steps, and says so where it ends before", () =>
  inFolder(async (folder) => {
    const run = async (steps: number) => {
      const name = `${folder}/${steps}`;
      return await company(name, tiny(name, { data: { total_steps: steps } }), { profile: true });
    };
    const { shown, folder: { path } } = await run(5), trace = `${path}/steps_rank0.json`;
    assertStringIncludes(shown, `Trace of 2 steps, for chrome://tracing: ${trace}`);
    const events = JSON.parse(Deno.readTextFileSync(trace)) as { name: string }[];
    assertEquals(events.filter(({ name }) => /^step \d+$/.test(name)).map(({ name }) => name), ["step 4", "step 5"]);
    assertStringIncludes((await run(2)).shown, "--profiling: nothing to look at, as the run ended before step 3");
  }));

Deno.test("data.valid_every counts steps: a batch whose gradient overflows is not followed by another evaluation", () =>
  inFolder(async (folder) => {
    const grad_scaler = { fp16: { initial_scale: 2 ** 19, growth_interval: 1 }, hysteresis: 1 };
    const record = tiny(folder, { model: { dtype: "float16" }, data: { valid_every: 1 }, grad_scaler });
    const { shown, outcome: { step } } = await company(folder, record);
    const skipped = new Set(shown.match(/Batch \d: the gradient is not finite/g)).size;
    assert(step >= 2 && skipped > 1, `of 8 batches ${step} are steps, and ${skipped} are not`);
    const steps = Array.from({ length: step }, (_, done) => `Validation at step ${done + 1}`);
    assertEquals(shown.match(/Validation at step \d+/g), steps);
  }));
