/**
 * A world of 64 ranks in one thread: the supervisor and the ranks as actors, with the control plane and the collectives of
 * a real run, and nothing computed.
 */
import { assertEquals, assertMatch } from "@std/assert";
import { createCommunicator } from "../src/comm/collectives/communicator.ts";
import { simulatedWorld } from "../src/comm/transport/simulated.ts";
import type { Transport } from "../src/comm/transport/transport.ts";
import { resolveConfig } from "../src/config/mod.ts";
import { Display } from "../src/observe/display.ts";
import { makeRunFolder, runFolder } from "../src/observe/run_folder.ts";
import { checkpointManager } from "./checkpoint_manager.ts";
import { startCompany } from "./company.ts";
import { rankProtocol } from "./rank_protocol.ts";
import { actor, createRuntime } from "./runtime/mod.ts";
import { nothingInitialised } from "./stub_rank.ts";

const world = 64, steps = 3;

/** Sums with the others, step by step; the one that is told to fails once, between two collectives. */
function summingRank(transport: Transport, number: number, fails: boolean, sums: number[]) {
  return actor({
    protocol: rankProtocol,
    initial: () => ({}),
    async handle(state, message) {
      if (message.kind === "initialise") {
        message.reply(nothingInitialised);
      } else if (message.kind === "train") {
        const group = createCommunicator(transport).group("data", Array.from({ length: world }, (_, i) => i));
        const pairs = createCommunicator(transport).group("pairs", [number & ~1, number | 1]);
        for (let step = 0; step < steps; step++) {
          if (fails && step === 1) {
            transport.abort(`Rank ${number} is gone: its connection closed`);
            throw new Error("out of luck");
          }
          const data = new Float32Array(100).fill(number + step), both = Float32Array.of(number);
          await group.allReduce(data);
          await pairs.allReduce(both);
          sums.push(data[99]! + both[0]!);
        }
        message.reply({ outcome: "finished", step: steps });
      }
      return state;
    },
  });
}

Deno.test("64 ranks in one process start, sum, lose one, start again and finish", async () => {
  const folder = await Deno.makeTempDir();
  const runtime = createRuntime({ log: () => {}, onDeadLetter: () => {} });
  let worlds: Transport[] = [];
  try {
    const config = resolveConfig({
      model: { num_layers: 1, hidden_size: 8, num_attention_heads: 2 },
      data: { seq_len: 8, micro_bsz: 1, total_steps: steps },
      adam: { lr: 1 },
      ckpt: { enable_save_ckpt: false },
      runtime: { nproc: world },
    });
    let shown = "";
    const output = { isTerminal: false, columns: () => 80, write: (text: string) => void (shown += text) };
    const run = runFolder({ jobName: "many", startTime: new Date(0), root: folder });
    makeRunFolder(run);
    const display = new Display({ output, everySeconds: 0 });
    const sums = Array.from({ length: world }, (): number[] => []);
    const company = await startCompany(runtime, {
      monitor: { folder: run, totalSteps: steps, title: "", json: false, display },
      checkpoints: checkpointManager({ folder, keepLast: 0, config: "", layout: {} }),
      supervisor: {
        config,
        runFolder: run.path,
        cpuFallback: false,
        // deno-lint-ignore require-await -- the options take a promise
        muster: async () => {
          worlds = simulatedWorld(world);
          sums.forEach((each) => each.splice(0));
          return { config, world };
        },
        rank: (attempt, rank) => summingRank(worlds[rank]!, rank, attempt === 1 && rank === 37, sums[rank]!),
      },
    });
    const outcome = await company.run();
    assertEquals(outcome.outcome, "finished", outcome.reason);
    assertMatch(shown, /Rank 37 crashed with 0 steps done: out of luck; starting all ranks again \(restart 1/);
    assertMatch(shown, /All 64 ranks are back/);
    const all = world * (world - 1) / 2;
    sums.forEach((own, rank) =>
      assertEquals(own, Array.from({ length: steps }, (_, step) => all + world * step + 2 * (rank & ~1) + 1))
    );
  } finally {
    await runtime.stop();
    await Promise.all(worlds.map((transport) => transport.close()));
    await Deno.remove(folder, { recursive: true });
  }
});
