/** The restart budget and the limits on silence, on a clock that the test moves. What a rank computes is not the matter here. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { resolveConfig } from "../src/config/mod.ts";
import { Display } from "../src/observe/display.ts";
import { makeRunFolder, runFolder } from "../src/observe/run_folder.ts";
import { checkpointManager } from "./checkpoint_manager.ts";
import { startCompany } from "./company.ts";
import { rankProtocol } from "./rank_protocol.ts";
import { actor, testRuntime } from "./runtime/mod.ts";
import { type Outcome, sizeOf } from "./supervisor.ts";
import { nothingInitialised } from "./stub_rank.ts";

const second = 1000;

/** A rank that says it is ready, and then trains until told to crash. */
function idleRank() {
  let crash: ((words: string) => void) | undefined;
  return {
    crash: (words: string) => crash!(words),
    spec: actor({
      protocol: rankProtocol,
      internal: { crash: {} },
      initial: () => ({ words: "" }),
      handle(state, message, context) {
        if (message.kind === "crash") throw new Error(state.words);
        if (message.kind === "initialise") {
          message.reply(nothingInitialised);
        }
        crash = (words) => {
          state.words = words;
          context.sendSelf({ kind: "crash" });
        };
        return state;
      },
    }),
  };
}

async function supervised(
  runtimeSection: Record<string, unknown>,
  body: (company: {
    /** Moves the clock, with a beat of the rank's communicator each second. */
    pass: (seconds: number, phase: string, options?: { changing?: boolean }) => Promise<void>;
    /** Moves the clock without any. */
    silence: (seconds: number) => Promise<void>;
    /** Lets the clock go on while nothing is handled. */
    frozen: (seconds: number) => Promise<void>;
    crash: (words: string) => Promise<void>;
    attempts: () => number;
    shown: () => string;
    outcome: () => Outcome | undefined;
  }) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  const runtime = testRuntime({ onDeadLetter: () => {} });
  try {
    const config = resolveConfig({
      model: { num_layers: 1, hidden_size: 8, num_attention_heads: 2 },
      data: { seq_len: 8, micro_bsz: 1, total_steps: 8 },
      adam: { lr: 1 },
      ckpt: { enable_save_ckpt: false },
      runtime: runtimeSection,
    });
    let shown = "";
    const output = { isTerminal: false, columns: () => 80, write: (text: string) => void (shown += text) };
    const run = runFolder({ jobName: "idle", startTime: new Date(0), root: folder });
    makeRunFolder(run);
    const display = new Display({ output, everySeconds: 0 });
    const ranks: ReturnType<typeof idleRank>[] = [];
    const starting = startCompany(runtime, {
      monitor: { folder: run, totalSteps: 8, title: "", json: false, display },
      checkpoints: checkpointManager({ folder, keepLast: 0, config: "", layout: {} }),
      supervisor: {
        config,
        runFolder: run.path,
        cpuFallback: false,
        rank: () => {
          ranks.push(idleRank());
          return ranks.at(-1)!.spec;
        },
      },
    });
    await runtime.settle();
    const company = await starting, root = company.supervisor;
    let outcome: Outcome | undefined;
    company.run().then((result) => outcome = result);
    await runtime.settle();
    let changes = 0;
    await body({
      async pass(seconds, phase, { changing = false } = {}) {
        for (let passed = 0; passed < seconds; passed++) {
          if (changing) changes++;
          root.send({ kind: "beat", rank: 0, attempt: ranks.length, changes, phase, step: 3 });
          await runtime.advance(second);
        }
      },
      silence: (seconds) => runtime.advance(seconds * second),
      async frozen(seconds) {
        runtime.scheduler.clock.advance(seconds * second); // and nothing is handled meanwhile
        await runtime.settle();
      },
      async crash(words) {
        ranks.at(-1)!.crash(words);
        await runtime.settle();
      },
      attempts: () => ranks.length,
      shown: () => shown,
      outcome: () => outcome,
    });
  } finally {
    await runtime.stop();
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("runtime.step_timeout_s ends a step, a wait for data and a batch of an evaluation that take longer", async () => {
  for (const phase of ["step", "data", "evaluate"]) {
    await supervised({ step_timeout_s: 20 }, async ({ pass, attempts, shown }) => {
      await pass(20, phase);
      assertEquals(attempts(), 1, phase);
      await pass(3, phase);
      assertEquals(attempts(), 2, phase);
      assertMatch(shown(), new RegExp(`was at "${phase}" after step 3 for 2\\d s, longer than runtime.step_timeout_s`));
      await pass(30, phase, { changing: true });
      assertEquals(attempts(), 2, "many short steps are no long one");
    });
  }
});

Deno.test("runtime.step_timeout_s leaves starting and saving more time, and 0 sets no limit", async () => {
  for (const phase of ["start", "initialise", "save"]) {
    await supervised({ step_timeout_s: 20 }, async ({ pass, attempts }) => {
      await pass(200, phase);
      assertEquals(attempts(), 1);
      await pass(3, phase);
      assertEquals(attempts(), 2);
    });
  }
  await supervised({ step_timeout_s: 0 }, async ({ pass, attempts }) => {
    await pass(2000, "step");
    assertEquals(attempts(), 1);
  });
});

Deno.test("supervisor() takes a rank for dead that is not heard of, whatever it was at", () =>
  supervised({ step_timeout_s: 0 }, async ({ pass, silence, attempts, shown }) => {
    await pass(1, "save");
    await silence(35);
    assertEquals(attempts(), 2);
    assertStringIncludes(shown(), 'was not heard of for 31 s, last at "save" after step 3');
  }));

Deno.test("supervisor() takes nobody for dead for the time in which it was itself stopped", () =>
  supervised({ step_timeout_s: 20 }, async ({ pass, frozen, silence, attempts }) => {
    await pass(1, "step");
    await frozen(3600);
    await pass(10, "step");
    assertEquals(attempts(), 1);
    await silence(35);
    assertEquals(attempts(), 2);
  }));

Deno.test("runtime.max_restarts ends the run when they are used up within restart_window_s", () =>
  supervised({ max_restarts: 2, restart_window_s: 100 }, async ({ crash, silence, attempts, outcome }) => {
    await crash("one");
    await silence(60);
    await crash("two");
    await silence(60);
    await crash("three"); // the first is out of the window
    assertEquals(attempts(), 4);
    assertEquals(outcome(), undefined);
    await crash("four");
    assertEquals(attempts(), 4);
    assertEquals(outcome()?.outcome, "failed");
    assertMatch(outcome()!.reason!, /four.*runtime\.max_restarts allows 2 within 100 s/);
  }));

Deno.test("runtime.max_restarts: 0 ends the run at the first failure", () =>
  supervised({ max_restarts: 0 }, async ({ crash, attempts, outcome }) => {
    await crash("the only one");
    assertEquals(attempts(), 1);
    assertStringIncludes(outcome()!.reason!, "the only one");
  }));

Deno.test("sizeOf() tells the largest plan where stages differ", () => {
  const planned = (...totals: number[]) =>
    sizeOf(totals.map((total) => ({ ...nothingInitialised, memory: { total } }))).split(", ").slice(2).join(", ");
  assertEquals(planned(2048), "2 KiB planned on none");
  assertEquals(planned(2048, 2048), "2 KiB planned on each of 2 ranks, the first on none");
  assertEquals(planned(1024, 2048), "at most 2 KiB planned on each of 2 ranks, the first on none");
});
