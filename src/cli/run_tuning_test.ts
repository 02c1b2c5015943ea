import { assertEquals, assertMatch } from "@std/assert";
import { join } from "node:path";
import { saveCheckpoint, wholeEntry } from "../checkpoint/mod.ts";
import { printResolved, resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { openTuningCache, type Tuning } from "../train/tuning_cache.ts";
import { inScratch } from "./_testing.ts";
import { withTuning } from "./run_tuning.ts";

const record = (folder: string, tuning?: Tuning): ResolvedConfig =>
  resolveConfig({
    model: { num_layers: 1, hidden_size: 8, num_attention_heads: 2 },
    data: { seq_len: 8, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1 },
    ckpt: { save_ckpt_folder: folder, auto_resume: true, checkpoint_every: 1 },
    ...(tuning ? { runtime: { tuning } } : {}),
  });

const keep = (folder: string, choice: string) =>
  openTuningCache("gpu", { folder, onNotice: (text) => assertEquals(text, "") })
    .save(new Map([["matmul", { choice, tried: {} }]]));

Deno.test("a run takes what the tuner found, and keeps to it when it goes on", () =>
  inScratch(async (scratch) => {
    const folder = join(scratch, "tuning"), checkpoints = join(scratch, "checkpoints"), notices: string[] = [];
    const tuned = (config: ResolvedConfig, retuned = false) => {
      notices.length = 0;
      const options = { folders: [checkpoints], retuned, onNotice: (text: string) => notices.push(text), folder };
      return withTuning(config, options).runtime.tuning;
    };
    assertEquals(tuned(record(checkpoints)), {}); // nothing was tuned yet
    keep(folder, "tiles");
    assertEquals(tuned(record(checkpoints)), { gpu: { matmul: "tiles" } });
    assertEquals(tuned(record(checkpoints, {})), {}); // the record says: what is shipped
    assertEquals(notices, []);

    const config = withTuning(record(checkpoints), { folders: [], retuned: false, onNotice: () => {}, folder });
    await saveCheckpoint({
      folder: checkpoints,
      step: 3,
      entries: [wholeEntry("parameter", "w", [1], new Float32Array(1))],
      layout: {},
      state: {},
      config: printResolved(config),
    });

    assertEquals(tuned(record(checkpoints)), { gpu: { matmul: "tiles" } });
    assertEquals(notices, []); // the same
    keep(folder, "units");
    assertEquals(tuned(record(checkpoints)), { gpu: { matmul: "tiles" } });
    assertMatch(notices.join(), /goes on with the forms of kernels that it began with.*--retune takes those/);
    assertEquals(tuned(record(checkpoints), true), { gpu: { matmul: "units" } });
    assertMatch(notices.join(), /--retune: the run goes on from step 3 with other forms.*last bits/);
    assertEquals(tuned(record(checkpoints, { gpu: { matmul: "mine" } })), { gpu: { matmul: "mine" } });
    assertMatch(notices.join(), /runtime.tuning: the run goes on from step 3 with other forms/);
  }));
