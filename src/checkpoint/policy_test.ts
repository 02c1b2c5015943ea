import { assertEquals, assertThrows } from "@std/assert";
import { decideSave, parseLoadCkptInfo, planLoad } from "./policy.ts";

Deno.test("decideSave() saves as InternEvo's rules say, step by step", () => {
  const policy = { checkpointEvery: 6, ossSnapshotFreq: 4, totalSteps: 14 };
  const saves = Array.from({ length: 15 }, (_, step) => decideSave(policy, step).save);
  const expected = saves.map((_, step) =>
    step === 6 || step === 12 || step === 14 ? "normal" : step === 4 || step === 8 ? "snapshot" : "none"
  );
  assertEquals(saves, expected); // 12 is due for both: normal wins
  assertEquals(decideSave({ totalSteps: 9 }, 8).save, "none");
  assertEquals(decideSave({ totalSteps: 9 }, 9).save, "normal");
  assertEquals(decideSave({ totalSteps: 9, checkpointEvery: null, ossSnapshotFreq: null }, 8).save, "none");
  assertEquals(decideSave({ ...policy, ossSnapshotFreq: 1 }, 3).save, "none", "1 is off");
  assertEquals(decideSave({ ...policy, ossSnapshotFreq: Infinity, checkpointEvery: Infinity }, 12).save, "none");
  assertEquals(decideSave(policy, 5, { force: true }), { save: "normal", stop: false });
  assertEquals(decideSave({ ...policy, enableSaveCkpt: false }, 6, { force: true }).save, "none");
});

Deno.test("decideSave() heeds the stop file", () => {
  const policy = { totalSteps: 100 };
  assertEquals(decideSave(policy, 5, { stopAt: 7 }), {
    save: "none",
    stop: false,
    announce: "The stop file asks: the run saves a checkpoint and stops at step 7",
  });
  const { save, stop } = decideSave(policy, 7, { stopAt: 7 });
  assertEquals([save, stop], ["normal", true]);
  assertEquals(decideSave(policy, 8, { stopAt: 7 }), { save: "none", stop: false });
  const goOn = decideSave({ ...policy, ossSnapshotFreq: 7 }, 7, { stopAt: -7 });
  assertEquals([goOn.save, goOn.stop], ["normal", false]);
  assertEquals(goOn.announce, "The stop file asks: the run saves a checkpoint and goes on at step 7");
  const unsaved = decideSave({ ...policy, enableSaveCkpt: false }, 7, { stopAt: 7 });
  assertEquals([unsaved.save, unsaved.stop], ["none", true], "stops even where nothing is saved");
  assertEquals(unsaved.announce?.includes("saves nothing, as ckpt.enable_save_ckpt is false"), true);
});

Deno.test("planLoad() follows auto_resume, load_ckpt_info and the legacy keys", () => {
  const info = { path: "local:a/20", content: ["all"], ckpt_type: "internevo" };
  const load = { path: "local:a/20", content: ["model", "sampler", "optimizer", "scheduler"], ckptType: "internevo" };
  assertEquals(planLoad({}), { resume: true });
  assertEquals(planLoad({ autoResume: false }), { resume: false });
  assertEquals(planLoad({ autoResume: false, loadCkptInfo: info }) as unknown, { resume: false, load });
  assertEquals(planLoad({ autoResume: true, loadCkptInfo: info }) as unknown, { resume: true, load });
  assertEquals(planLoad({ loadGivenCkpt: true }).resume, false);
  assertEquals(planLoad({ loadGivenCkpt: false }).resume, true);
  assertEquals(planLoad({ autoResume: true, loadGivenCkpt: true }).resume, true);
  const legacy = (options: object) => {
    const { load } = planLoad({ autoResume: false, ...options });
    return load ? [load.path, ...load.content] : "nothing";
  };
  assertEquals(legacy({ loadModelOnlyFolder: "m" }), ["m", "model"]);
  assertEquals(legacy({ loadCkptFolder: "c" }), ["c", "model", "sampler", "optimizer"]);
  assertEquals(legacy({ loadCkptFolder: "c", loadOptimizer: false }), ["c", "model", "sampler"]);
  assertEquals(legacy({ loadCkptFolder: "c", loadCkptInfo: info })[0], "local:a/20");
  assertEquals(legacy({ loadCkptFolder: null, loadModelOnlyFolder: null, loadCkptInfo: null }), "nothing");
  assertThrows(() => legacy({ loadCkptFolder: "c", loadModelOnlyFolder: "m" }), RangeError, "leave one out");
});

Deno.test("parseLoadCkptInfo() takes what works and names what does not", () => {
  const good = { path: "hf:x", content: "model", ckpt_type: "hf" };
  assertEquals(parseLoadCkptInfo(good), { path: "hf:x", content: ["model"], ckptType: "hf" });
  const several = { path: "p", content: ["scheduler", "model"], ckpt_type: "internevo" };
  assertEquals(parseLoadCkptInfo(several).content, ["model", "scheduler"]);
  const bad: [unknown, string][] = [
    ["path", 'must be {path, content, ckpt_type}: current value is "path"'],
    [[good], "must be {path, content, ckpt_type}"],
    [{ ...good, type: "hf" }, "type unknown"],
    [{ ...good, path: "" }, "load_ckpt_info.path"],
    [{ content: ["model"], ckpt_type: "hf" }, "load_ckpt_info.path"],
    [{ ...good, content: [] }, "one or several of model, sampler, optimizer, scheduler, all: current value is []"],
    [{ ...good, content: ["weights"] }, 'current value is ["weights"]'],
    [{ ...several, content: ["optimizer", "sampler"] }, "sampler, optimizer without model is not supported: add model"],
    [{ ...good, content: ["all"] }, "a Hugging Face folder holds only the model"],
    [{ ...good, ckpt_type: "llama" }, "convert them to a Hugging Face folder and use hf"],
    [{ ...good, ckpt_type: "internlm2_test" }, "internevo loads checkpoints of any layout"],
    [{ ...good, ckpt_type: "constructor" }, 'must be internevo or hf: current value is "constructor"'],
  ];
  for (const [info, message] of bad) assertThrows(() => parseLoadCkptInfo(info), Error, message);
});
