/** What ranks take of their machine's memory, as the system counts it, beside what is planned. */
import { assert } from "@std/assert";
import { loadConfig, resolveConfig } from "../src/config/mod.ts";
import { openNullBackend } from "../src/backend/null/backend.ts";
import { runMesh } from "../src/parallel/run_mesh.ts";
import { estimateHostMemory } from "../src/train/host_memory.ts";
import { planModel, prefetchOf } from "../src/train/model.ts";
import { inFolder, rankOf, tinyRecord } from "./processes.ts";

/**
 * How many times as much, or as little, may be taken. Estimates are within a quarter on a machine with little else to do;
 * how late garbage is collected, and what Deno maps of itself, are no matter of the estimate.
 */
const looseness = 2;

Deno.test("real ranks take about what was estimated of their machine's memory", () =>
  inFolder(async (folder, processes) => {
    const ranks = 2;
    // Most of it is a large vocabulary: tables that are held, sent and gathered, and little work.
    const record = tinyRecord(folder, {
      model: { hidden_size: 64, vocab_size: 60_000 },
      // More steps than it will do: it is killed at the end, as a process that has ended tells no memory.
      data: { seq_len: 8, micro_num: 1, total_steps: 1_000_000 },
      ckpt: { enable_save_ckpt: false },
      runtime: { backend: "cpu", run_dir: `${folder}/RUN/tiny` },
    });
    const config = resolveConfig(await loadConfig(record), { worldSize: ranks });
    const run = processes.start(["train", "--config", record, "--json", "--nproc", String(ranks)], { folder });
    await run.out.until((text) => text.split("\n").length > 2, "two steps");
    for (let rank = 0; rank < ranks; rank++) {
      const mesh = runMesh(config, { rank, world: ranks }), planned = planModel(config, openNullBackend().traits, mesh);
      const host = estimateHostMemory(config, { ...planned, mesh, prefetches: prefetchOf(config) });
      assert(host.synchronization > 0.1 * host.total, "a share of it travels between ranks");
      // The CPU backend's device is the machine's memory too.
      const estimate = host.total + planned.memory.total;
      const peak = await processes.peakBytes(await rankOf(folder, 1, rank)), times = peak / estimate;
      assert(
        times < looseness && times > 1 / looseness,
        `rank ${rank}: ${estimate} estimated, ${peak} at most, ${times} times as much`,
      );
    }
  }));
