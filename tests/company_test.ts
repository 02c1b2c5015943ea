/** The whole company in one thread, on the CPU backend: what the supervisor does when things go well, and when not. */
import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { checkpointManager } from "../actors/checkpoint_manager.ts";
import { dataLoader } from "../actors/data_loader.ts";
import { monitor } from "../actors/monitor.ts";
import { rank } from "../actors/rank.ts";
import { createRuntime } from "../actors/runtime/mod.ts";
import { type Outcome, supervisor } from "../actors/supervisor.ts";
import { openBackend } from "../src/backend/open.ts";
import type { Backend } from "../src/backend/backend.ts";
import { resolveConfig, type ResolvedConfig } from "../src/config/mod.ts";
import { Display } from "../src/observe/display.ts";
import { makeRunFolder, runFolder } from "../src/observe/run_folder.ts";

const tiny = (folder: string, changes: Record<string, unknown> = {}): ResolvedConfig =>
  resolveConfig({
    JOB_NAME: "tiny",
    model_type: "INTERNLM2",
    model: {
      num_layers: 1,
      hidden_size: 8,
      num_attention_heads: 2,
      vocab_size: 256,
      mlp_ratio: 1,
      multiple_of: 8,
      no_bias: true,
    },
    data: { seq_len: 16, micro_bsz: 1, micro_num: 2, total_steps: 8, valid_every: 0 },
    adam: { lr: 1e-2 },
    ckpt: { save_ckpt_folder: `${folder}/checkpoints`, checkpoint_every: 3 },
    runtime: { backend: "cpu", max_restarts: 2 },
    ...changes,
  });

interface Run {
  readonly outcome: Outcome;
  /** Lines of the metrics file. */
  readonly curve: { step: number; loss: number; gradNorm: number }[];
  readonly shown: string;
}

/** @param wrap changes the backend of each attempt, counted from 1 */
async function company(
  folder: string,
  config: ResolvedConfig,
  { wrap = (backend) => backend, onStep }: {
    wrap?: (backend: Backend, attempt: number) => Backend;
    onStep?: (step: number, stop: () => void) => void;
  } = {},
): Promise<Run> {
  let shown = "";
  const output = { isTerminal: false, columns: () => 80, write: (text: string) => void (shown += text) };
  const run = { ...runFolder({ jobName: "tiny", startTime: new Date(0), root: folder }) };
  makeRunFolder(run);
  const runtime = createRuntime({ log: (actor, text) => void (shown += `${actor}: ${text}\n`) });
  const monitorRef = runtime.spawn(
    "monitor",
    monitor({
      folder: run,
      totalSteps: config.data.total_steps,
      title: "tiny",
      json: false,
      tensorboard: {},
      display: new Display({ output, everySeconds: 0 }),
    }),
  );
  const checkpoints = runtime.spawn(
    "checkpoints",
    checkpointManager({ folder: `${folder}/checkpoints`, keepLast: 0, config: "", layout: {} }),
  );
  const root = runtime.spawn(
    "supervisor",
    supervisor({
      config,
      runFolder: run.path,
      cpuFallback: false,
      monitor: monitorRef,
      checkpoints,
      rank: (attempt) =>
        rank({
          backend: async () => watchSteps(wrap(await openBackend("cpu"), attempt)),
          loader: (options) => dataLoader(options),
        }),
    }),
  );
  let updates = 0;
  function watchSteps(backend: Backend): Backend {
    if (!onStep) return backend;
    return intercept(backend, (kernel) => {
      if (kernel === "adamw") onStep(++updates, () => root.send({ kind: "stop" }));
    });
  }
  try {
    const outcome = await root.ask({ kind: "run" }, { timeoutMs: Infinity });
    await monitorRef.ask({ kind: "finish" });
    const lines = outcome.outcome === "failed" && outcome.step === 0 ? "" : Deno.readTextFileSync(run.metrics);
    const curve = lines.trim().split("\n").filter(Boolean).map((line) => JSON.parse(line));
    return { outcome, curve: curve.map(({ step, loss, gradNorm }) => ({ step, loss, gradNorm })), shown };
  } finally {
    await runtime.stop();
  }
}

/** Calls back with every kernel's name before it runs. */
function intercept(backend: Backend, before: (kernel: string) => void): Backend {
  return new Proxy(backend, {
    get(target, name) {
      const value = Reflect.get(target, name, target);
      if (name !== "submit") return typeof value === "function" ? value.bind(target) : value;
      return (list: Parameters<Backend["submit"]>[0]) => {
        for (const command of list.commands) if (command.kind === "dispatch") before(command.kernel.name);
        target.submit(list);
      };
    },
  });
}

async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

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
