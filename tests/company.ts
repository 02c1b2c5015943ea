/** A whole company in one thread, on the CPU backend, for tests of what its actors do together. */
import { checkpointManager, type checkpointManagerProtocol } from "../actors/checkpoint_manager.ts";
import { type Members, membersOf, startCompany } from "../actors/company.ts";
import { dataLoader, type dataLoaderProtocol } from "../actors/data_loader.ts";
import type { TensorBoardSettings } from "../actors/monitor.ts";
import { rank } from "../actors/rank.ts";
import { type ActorSpec, type AnyProtocol, createRuntime } from "../actors/runtime/mod.ts";
import type { Outcome } from "../actors/supervisor.ts";
import { openBackend } from "../src/backend/open.ts";
import type { Backend } from "../src/backend/backend.ts";
import { printResolved, resolveConfig, type ResolvedConfig } from "../src/config/mod.ts";
import { Display } from "../src/observe/display.ts";
import { makeRunFolder, type RunFolder, runFolder } from "../src/observe/run_folder.ts";

type Section = Record<string, unknown>;

/** A tiny run that saves below `folder`; sections given change fields of it. */
export function tiny(folder: string, changes: Readonly<Record<string, Section>> = {}): ResolvedConfig {
  const sections: Record<string, Section> = {
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
  };
  const names = new Set([...Object.keys(sections), ...Object.keys(changes)]);
  return resolveConfig({
    JOB_NAME: "tiny",
    model_type: "INTERNLM2",
    ...Object.fromEntries([...names].map((name) => [name, { ...sections[name], ...changes[name] }])),
  });
}

export interface Run {
  readonly outcome: Outcome;
  /** Lines of the metrics file. */
  readonly curve: { step: number; loss: number; gradNorm: number }[];
  readonly shown: string;
  readonly folder: RunFolder;
}

export interface RunOptions {
  /** Changes the backend of each attempt, counted from 1. */
  readonly wrap?: (backend: Backend, attempt: number) => Backend;
  /** Called before each update, counted from 1 over all attempts. */
  readonly onStep?: (step: number, members: Members) => void;
  /** Called with every alert. */
  readonly onAlert?: (text: string) => void;
  /** Changes the loader of each attempt, counted from 1. */
  readonly loader?: (spec: ActorSpec<typeof dataLoaderProtocol>, attempt: number) => typeof spec;
  /** Changes the checkpoint manager. */
  readonly checkpoints?: (spec: ActorSpec<typeof checkpointManagerProtocol>) => typeof spec;
  readonly tensorboard?: TensorBoardSettings;
  /** Tells this run from others in the same folder. @default {0} */
  readonly startTime?: number;
  /** As with `--profiling`. @default {false} */
  readonly profile?: boolean;
}

/** Runs a company to its end. */
export async function company(folder: string, config: ResolvedConfig, options: RunOptions = {}): Promise<Run> {
  const { wrap = (backend) => backend, loader = (spec) => spec, checkpoints = (spec) => spec, onStep } = options;
  const { tensorboard = {}, startTime = 0, profile = false, onAlert } = options;
  let shown = "";
  const output = { isTerminal: false, columns: () => 80, write: (text: string) => void (shown += text) };
  const run = { ...runFolder({ jobName: "tiny", startTime: new Date(startTime), root: folder }) };
  makeRunFolder(run);
  const runtime = createRuntime({ log: (actor, text) => void (shown += `${actor}: ${text}\n`) });
  const members = membersOf(runtime);
  let updates = 0;
  function watchSteps(backend: Backend): Backend {
    if (!onStep) return backend;
    return intercept(backend, (kernel) => {
      if (kernel === "adamw") onStep(++updates, members);
    });
  }
  try {
    const { run: toItsEnd, finish } = await startCompany(runtime, {
      monitor: {
        folder: run,
        totalSteps: config.data.total_steps,
        title: "tiny",
        json: false,
        tensorboard,
        display: new Display({ output, everySeconds: 0 }),
        ...(onAlert ? { onAlert } : {}),
      },
      checkpoints: checkpoints(checkpointManager({
        folder: `${folder}/checkpoints`,
        keepLast: 0,
        snapshots: config.ckpt.oss_snapshot_freq ? `${folder}/checkpoints/snapshot` : undefined,
        config: printResolved(config),
        layout: {},
      })),
      supervisor: {
        config,
        runFolder: run.path,
        cpuFallback: false,
        rank: (attempt) =>
          rank({
            backend: async () => watchSteps(wrap(await openBackend("cpu"), attempt)),
            loader: (options) => loader(dataLoader(options), attempt),
            profile,
          }),
      },
    });
    const outcome = await toItsEnd();
    await finish();
    const lines = outcome.outcome === "failed" && outcome.step === 0 ? "" : Deno.readTextFileSync(run.metrics);
    const curve = lines.trim().split("\n").filter(Boolean).map((line) => JSON.parse(line));
    return { outcome, curve: curve.map(({ step, loss, gradNorm }) => ({ step, loss, gradNorm })), shown, folder: run };
  } finally {
    await runtime.stop();
  }
}

/** The actor, with a handler that throws where `before` does. */
export function crashing<P extends AnyProtocol>(
  { protocol, behavior }: ActorSpec<P>,
  before: (kind: string) => void,
): ActorSpec<P> {
  const { definition } = behavior;
  return {
    protocol,
    behavior: {
      ...behavior,
      definition: {
        ...definition,
        handle(state, message, context) {
          before((message as { kind: string }).kind);
          return definition.handle(state, message, context);
        },
      },
    },
  };
}

/** Calls back with every kernel's name before it runs. */
export function intercept(backend: Backend, before: (kernel: string) => void): Backend {
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

/** A folder of its own for the test, removed afterwards. */
export async function inFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await body(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}
