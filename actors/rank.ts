/**
 * The rank: holds one program on one device and runs its steps. It learns everything it needs by message, so a fresh one
 * starts from a checkpoint or from nothing, never from what a dead one left.
 *
 * A step is one private message to itself, so that commands are heard between steps.
 */
import { z } from "zod";
import type { Backend } from "../src/backend/backend.ts";
import type { BackendName } from "../src/backend/open.ts";
import {
  type Checkpoint,
  decideSave,
  loadContents,
  type LoadPath,
  openCheckpoint,
  readStopFile,
  writeShard,
} from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import type { Batch, DataPosition } from "../src/data/mod.ts";
import { formatBytes } from "../src/observe/format.ts";
import { globalTensors, shardEntries } from "../src/train/checkpoint.ts";
import { describeContent, loadHuggingFace, openGivenCheckpoint, recordDifferences } from "../src/train/load.ts";
import { loadPlugins } from "../src/train/model.ts";
import { Session } from "../src/train/session.ts";
import { checkpointManagerProtocol } from "./checkpoint_manager.ts";
import type { DataLoaderOptions, dataLoaderProtocol } from "./data_loader.ts";
import { monitorProtocol } from "./monitor.ts";
import { phases, type Progress } from "./progress.ts";
import {
  actor,
  type ActorSpec,
  AskError,
  type Context,
  type Message,
  plainReason,
  protocol,
  type Ref,
  refTo,
  type Reply,
} from "./runtime/mod.ts";

const trainedSchema = z.object({
  outcome: z.enum(["finished", "stopped", "failed"]),
  step: z.number(),
  /** What is wrong with the data, where that ended it. */
  problem: z.string().optional(),
  /** Why the last checkpoint could not be written, where one was due. */
  unsaved: z.string().optional(),
});
export type Trained = z.output<typeof trainedSchema>;

const memorySchema = z.record(z.string(), z.number());

export const rankProtocol = protocol({
  requests: {
    /** Makes model and optimizer, takes a checkpoint where there is one, and opens the data. Refused with a sentence. */
    initialise: {
      ask: {
        config: z.custom<ResolvedConfig>((value) => typeof value === "object" && value !== null),
        /** Folder of a verified checkpoint of the run itself, to go on from. */
        checkpoint: z.string().nullable(),
        /** What else to begin from, where there is no such checkpoint; null for fresh weights. */
        load: z.custom<LoadPath>((value) => typeof value === "object" && value !== null).nullable(),
        /** Folder of the run's records, kept in checkpoints so that a resumed run goes on in it. */
        runFolder: z.string(),
        /** Whether the CPU may compute where no adapter answers. */
        cpuFallback: z.boolean(),
        monitor: refTo(monitorProtocol),
        checkpoints: refTo(checkpointManagerProtocol),
      },
      reply: z.object({
        /** Steps done. */
        step: z.number(),
        /** Batches consumed. */
        batch: z.number(),
        /** What was loaded from where, when it was `load`. */
        loaded: z.string().optional(),
        parameters: z.number(),
        memory: memorySchema,
        device: z.string(),
        software: z.boolean(),
        rows: z.number(),
      }),
    },
    /** Trains to the end, or until told to stop. */
    train: { ask: {}, reply: trainedSchema },
  },
  commands: {
    /** Save and end, after the step under way. */
    stop: {},
  },
});

interface Ready {
  readonly backend: Backend;
  readonly session: Session;
  readonly loader: Ref<typeof dataLoaderProtocol>;
  readonly monitor: Ref<typeof monitorProtocol>;
  readonly checkpoints: Ref<typeof checkpointManagerProtocol>;
  readonly runFolder: string;
  /** Position after the last batch used. */
  position: DataPosition | undefined;
  readonly loaded: string | undefined;
  lastSaved: { readonly step: number; readonly snapshot: boolean };
  /** What the stop file last said, so that it is announced once. */
  stopFile: string | undefined;
}

interface State {
  ready?: Ready;
  reply?: Reply<Trained>;
  stopping: boolean;
}

export interface RankOptions {
  readonly backend: (name: BackendName) => Promise<Backend>;
  /** How the loader is started: in this thread, or in a worker. */
  readonly loader: (options: DataLoaderOptions) => ActorSpec<typeof dataLoaderProtocol>;
  /** Where the rank is, for whoever watches from another thread. */
  readonly progress?: Progress;
}

const internal = { advance: {} };
type Own = Context<typeof rankProtocol, typeof internal>;

export const rank = (options: RankOptions) =>
  actor({
    protocol: rankProtocol,
    internal,
    initial: (): State => ({ stopping: false }),
    async handle(state, message, context) {
      const { progress } = options;
      switch (message.kind) {
        case "initialise": {
          progress?.enter(phases.initialise, 0);
          try {
            state.ready = await initialise(options, message, context);
          } catch (error) {
            message.reply.refuse(plainReason(error));
            break;
          }
          const { backend, loaded, session: { trainer: { model, stepCount } } } = state.ready;
          const { rows } = await context.ask(state.ready.loader, { kind: "describe" }, { timeoutMs: 60_000 });
          message.reply({
            step: stepCount,
            batch: state.ready.position?.batch_count ?? 0,
            ...(loaded ? { loaded } : {}),
            parameters: model.parameterCount,
            memory: { ...model.memory },
            device: backend.traits.description,
            software: backend.traits.software || backend.name !== "webgpu",
            rows,
          });
          break;
        }
        case "train":
          if (!state.ready) message.reply.refuse("the rank was not initialised");
          else {
            state.reply = message.reply;
            context.sendSelf({ kind: "advance" });
          }
          break;
        case "stop":
          state.stopping = true;
          break;
        case "advance":
          await advance(state, state.ready!, context, progress);
      }
      return state;
    },
    stopped({ ready }) {
      ready?.session[Symbol.dispose]();
      ready?.backend[Symbol.dispose]();
    },
  });

type Initialise = Extract<Message<typeof rankProtocol>, { kind: "initialise" }>;

async function initialise(
  { backend: open, loader }: RankOptions,
  { config, checkpoint, load, runFolder, cpuFallback, monitor, checkpoints }: Initialise,
  context: Own,
): Promise<Ready> {
  const notice = (text: string) => monitor.send({ kind: "notice", text });
  if (config.runtime.plugins.length > 0) await loadPlugins(config.runtime.plugins);
  using saved = checkpoint !== null
    ? openCheckpoint(checkpoint)
    : load?.ckptType === "internevo"
    ? await openGivenCheckpoint(load.path, notice)
    : undefined;
  const content = checkpoint !== null ? loadContents : load?.content ?? [];
  const position = saved && startingPosition(saved, content);
  const loaderRef = context.spawn(
    "loader",
    loader({ data: config.data, dataRank: 0, dataWorldSize: 1, ...(position ? { position } : {}) }),
  );
  await context.started(loaderRef);
  // Its refusal is the sentence that says what is wrong with the data.
  const { types, begin } = await context.ask(loaderRef, { kind: "describe" }, { timeoutMs: 60_000 });
  const backend = await open(config.runtime.backend).catch((error: Error) => {
    if (!cpuFallback) throw error;
    notice(`${error.message}\nNo GPU: going on with the CPU backend, which is many times slower.`);
    return open("cpu");
  });
  const session = await Session.open(config, { backend, datasetTypes: types, onNotice: notice }).catch((error) => {
    backend[Symbol.dispose]();
    throw error;
  });
  let loaded: string | undefined;
  try {
    if (saved) {
      try {
        session.restore(saved, content);
      } catch (error) {
        if (checkpoint === null) throw error;
        const otherwise = "another ckpt.save_ckpt_folder, or ckpt.auto_resume: false, begins a new run";
        throw new Error(
          `${(error as Error).message}. To go on, the record must be the one it was saved by; ${otherwise}`,
        );
      }
      recordDifferences(saved, config).forEach(notice);
      if (checkpoint === null) loaded = `${describeContent(content)} of step ${saved.step} (${saved.directory})`;
    } else if (load) loaded = loadHuggingFace(session.trainer.model, load.path);
  } catch (error) {
    session[Symbol.dispose]();
    backend[Symbol.dispose]();
    throw error;
  }
  return {
    backend,
    session,
    loader: loaderRef,
    monitor,
    checkpoints,
    runFolder,
    position: position && begin,
    loaded,
    lastSaved: { step: checkpoint === null ? -1 : saved!.step, snapshot: false },
    stopFile: undefined,
  };
}

/** Where the data goes on after a checkpoint: with the counts alone, from the beginning under the old count. */
function startingPosition(
  { manifest }: Checkpoint,
  content: readonly string[],
): Partial<DataPosition> | undefined {
  if (content.length <= 1) return undefined; // the model alone makes a new run
  const { data } = manifest.state as unknown as { data: DataPosition };
  return content.includes("sampler")
    ? data
    : { batch_count: data.batch_count, num_consumed_tokens: data.num_consumed_tokens };
}

/** One batch: a step, what the record asks for after it, and the decision what comes next. */
async function advance(state: State, ready: Ready, context: Own, progress: Progress | undefined): Promise<void> {
  const { session, loader, monitor } = ready, { trainer, config } = session;
  const finished = (ready.position?.batch_count ?? 0) >= config.data.total_steps;
  if (finished || state.stopping) {
    const { unsaved } = await save(ready, context, { force: true });
    const outcome = finished ? "finished" : "stopped";
    return state.reply!({ outcome, step: trainer.stepCount, ...(unsaved ? { unsaved } : {}) });
  }

  // Starting again would not help; what was learned is kept.
  const failOnData = async (problem: string) => {
    const { unsaved } = await save(ready, context, { force: true });
    state.reply!({ outcome: "failed", step: trainer.stepCount, problem, ...(unsaved ? { unsaved } : {}) });
  };

  reportMemory(ready);
  progress?.enter(phases.data, trainer.stepCount);
  const batch = await nextBatch(loader, context);
  if ("problem" in batch) return await failOnData(batch.problem);
  const before = ready.position;
  ready.position = batch.after;
  if (batch.skipped) {
    monitor.send({ kind: "notice", text: `Skip batch count:\`${batch.batchCount}\`...` });
  } else {
    progress?.enter(phases.step, trainer.stepCount);
    const report = await session.step(batch).catch((error) => {
      if (error instanceof RangeError) return { problem: error.message }; // a batch that no model of this shape can take
      throw error;
    });
    if ("problem" in report) {
      ready.position = before;
      return await failOnData(report.problem);
    }
    const { record, loss, gradNorm, learningRate, tokensPerSecond, success } = report;
    monitor.send({
      kind: "step",
      step: trainer.stepCount,
      batch: batch.batchCount,
      loss,
      gradNorm,
      learningRate,
      tokensPerSecond,
      memory: ready.backend.allocatedBytes,
      success,
      ...(record ? { record } : {}),
    });
    if (session.evaluationDue) {
      const entered = () => progress?.enter(phases.evaluate, trainer.stepCount);
      entered();
      monitor.send({ kind: "phase", name: "evaluating" });
      const records = await session.evaluate(entered);
      monitor.send({ kind: "validation", step: trainer.stepCount, batch: batch.batchCount, records });
    }
    progress?.enter(phases.save, trainer.stepCount);
    const { stop } = await save(ready, context);
    if (stop) state.stopping = true;
  }
  context.sendSelf({ kind: "advance" });
}

/** @throws where the loader ended; what is wrong with the data is answered. */
async function nextBatch(
  loader: Ref<typeof dataLoaderProtocol>,
  context: Own,
): Promise<Batch | { readonly problem: string }> {
  try {
    return await context.ask(loader, { kind: "next" }, { timeoutMs: Infinity });
  } catch (error) {
    if (error instanceof AskError && error.failure === "refused") return { problem: plainReason(error) };
    throw error;
  }
}

/** In the log file, of the first batches and then of every so many: what was planned, and what is in use. */
function reportMemory({ backend, session: { trainer: { model }, config }, monitor, position }: Ready): void {
  const batch = position?.batch_count ?? 0, every = config.data.empty_cache_and_diag_interval;
  if (batch > 5 && batch % (every > 0 ? every : 50) !== 0) return;
  const { rss, heapUsed } = Deno.memoryUsage();
  const text = `memory before batch ${batch}: ${formatBytes(backend.allocatedBytes)} allocated on the device, ` +
    `${formatBytes(model.memory.total)} planned; the rank's process has ${formatBytes(rss)}, ` +
    `of which JavaScript uses ${formatBytes(heapUsed)}`;
  monitor.send({ kind: "log", text });
}

/**
 * Saves where the record's rules, the stop file or `force` say so. A save that fails is told, and the run goes on.
 *
 * @returns why it failed, and whether the stop file ends the run
 */
async function save(
  ready: Ready,
  context: Own,
  { force = false } = {},
): Promise<{ unsaved?: string; stop: boolean }> {
  const { session: { trainer, config }, checkpoints, monitor, position, runFolder, lastSaved } = ready;
  const { ckpt, data } = config, step = trainer.stepCount;
  const { save, stop, announce } = decideSave(
    {
      enableSaveCkpt: ckpt.enable_save_ckpt,
      checkpointEvery: ckpt.checkpoint_every,
      ossSnapshotFreq: ckpt.oss_snapshot_freq,
      totalSteps: data.total_steps,
    },
    step,
    { force, stopAt: await stopStep(ready) },
  );
  if (announce && announce !== ready.stopFile) monitor.send({ kind: "alert", text: announce });
  if (announce) ready.stopFile = announce;
  const snapshot = save === "snapshot";
  const done = step === lastSaved.step && (snapshot || !lastSaved.snapshot);
  if (save === "none" || done || position === undefined) return { stop };
  monitor.send({ kind: "phase", name: "saving" });
  const options = { timeoutMs: Infinity };
  try {
    const { directory } = await context.ask(checkpoints, { kind: "begin", step, snapshot }, options);
    try {
      const shard = await writeShard({ directory, writer: 0, entries: shardEntries(trainer.model) });
      const state = { ...(ready.session.state(position) as object), run_folder: runFolder };
      const tensors = globalTensors(trainer.model);
      await context.ask(checkpoints, { kind: "commit", directory, step, shards: [shard], tensors, state }, options);
    } catch (error) {
      checkpoints.send({ kind: "abandon", directory });
      throw error;
    }
    ready.lastSaved = { step, snapshot };
    return { stop };
  } catch (error) {
    const reason = plainReason(error);
    monitor.send({ kind: "alert", text: `Checkpoint of step ${step} was not saved: ${reason}` });
    return { unsaved: reason, stop };
  }
}

/** The stop file's number. One that cannot be read is told, once, and asks for nothing: a slip must not end a run. */
async function stopStep(ready: Ready): Promise<number> {
  const path = ready.session.config.ckpt.stop_file_path;
  if (path === null) return 0;
  try {
    return await readStopFile(path);
  } catch (error) {
    const text = `${(error as Error).message}; the run goes on`;
    if (text !== ready.stopFile) ready.monitor.send({ kind: "alert", text });
    ready.stopFile = text;
    return 0;
  }
}
