/**
 * The rank: holds one program on one device and runs its steps. It learns everything it needs by message, so a fresh one
 * starts from a checkpoint or from nothing, never from what a dead one left.
 *
 * A step is one private message to itself, so that commands are heard between steps. They reach ranks at different
 * moments, so all agree before each step on whether to take it.
 */
import type { Backend } from "../src/backend/backend.ts";
import { type BackendName, deviceOptions, type OpenOptions } from "../src/backend/open.ts";
import { defaultProvider } from "../src/backend/webgpu/provider.ts";
import { type Checkpoint, type LoadContent, loadContents, openCheckpoint } from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import type { Batch, DataPosition } from "../src/data/mod.ts";
import { sharedTablesFolder } from "../src/data/shared_tables.ts";
import { countOf, formatBytes } from "../src/observe/format.ts";
import { Diagnosis } from "../src/train/diagnosis.ts";
import { describeContent, openGivenCheckpoint, recordDifferences } from "../src/train/load.ts";
import { loadPlugins } from "../src/train/plugins.ts";
import type { FlightRecorder } from "../src/observe/flight_recorder.ts";
import { Session } from "../src/train/session.ts";
import type { Communicator } from "../src/comm/collectives/communicator.ts";
import { CommunicationError } from "../src/comm/transport/link.ts";
import { runMesh } from "../src/parallel/run_mesh.ts";
import { createWorld, solo, type World } from "../src/parallel/world.ts";
import type { Meeting } from "./communicator.ts";
import type { DataLoaderOptions, dataLoaderProtocol } from "./data_loader.ts";
import type { monitorProtocol } from "./monitor.ts";
import { Profiling } from "./profiling.ts";
import { phases, type Progress } from "./progress.ts";
import { rankProtocol, type Trained } from "./rank_protocol.ts";
import {
  actor,
  type ActorSpec,
  AskError,
  type Context,
  type Message,
  plainReason,
  type Ref,
  type Reply,
} from "./runtime/mod.ts";
import { Saving } from "./saving.ts";

interface Ready {
  readonly backend: Backend;
  readonly diagnosis: Diagnosis;
  readonly world: World;
  readonly session: Session;
  readonly saving: Saving;
  /** Where it was asked for. */
  readonly profiling: Profiling | undefined;
  readonly loader: Ref<typeof dataLoaderProtocol>;
  readonly monitor: Ref<typeof monitorProtocol>;
  /** Position after the last batch used. */
  position: DataPosition | undefined;
  readonly loaded: string | undefined;
}

interface State {
  ready?: Ready;
  reply?: Reply<Trained>;
  stopping: boolean;
}

export interface RankOptions {
  /** Opens the device that a run record asks for. */
  readonly backend: (name: BackendName, options?: OpenOptions) => Promise<Backend>;
  /** How the loader is started: in this thread, or in a worker. */
  readonly loader: (options: DataLoaderOptions) => ActorSpec<typeof dataLoaderProtocol>;
  /** How the other ranks are met; needed where there are any. */
  readonly meet?: (meeting: Meeting) => Promise<Pick<Communicator, "group">>;
  /** Where the rank is, for whoever watches from another thread. */
  readonly progress?: Progress;
  /** Keeps what the rank does, for the story of an accident. */
  readonly record?: (text: string) => void;
  /** Leaves a profile of the third step in the run's folder, and a trace of the five after it. @default {false} */
  readonly profile?: boolean;
  /** What was recorded since, for the trace: collectives, as the communicator notes them. */
  readonly recorded?: FlightRecorder["since"];
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
            if (error instanceof CommunicationError) throw error; // another rank's failure is none of the record
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
            memory: { ...model.memory, ...(model.room && { room: model.room.bytes }) },
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
  { backend: open, loader, meet, record, profile, recorded }: RankOptions,
  { config, checkpoint, load, runFolder, cpuFallback, monitor, checkpoints, place }: Initialise,
  context: Own,
): Promise<Ready> {
  // What one rank notices, all do.
  const notice = (text: string) => void (place.rank === 0 && monitor.send({ kind: "notice", text }));
  const phase = (name: string) => void (place.rank === 0 && monitor.send({ kind: "phase", name }));
  const mesh = place.world === 1 ? solo.mesh : runMesh(config, place);
  if (config.runtime.plugins.length > 0) await loadPlugins(config.runtime.plugins);
  using saved = checkpoint !== null
    ? openCheckpoint(checkpoint)
    : load?.ckptType === "internevo"
    ? await openGivenCheckpoint(load.path, notice)
    : undefined;
  const content = checkpoint !== null ? loadContents : load?.content ?? [];
  const position = saved && startingPosition(saved, content);
  phase("opening the data");
  const loaderRef = context.spawn(
    "loader",
    loader({
      data: { ...config.data, shm_path: sharedTablesFolder(config.data.shm_path, runFolder) },
      dataRank: mesh.index("data"),
      dataWorldSize: mesh.size("data"),
      pipeline: mesh.size("pipeline") > 1,
      ...(position ? { position } : {}),
    }),
  );
  await context.started(loaderRef);
  // Its refusal is the sentence that says what is wrong with the data.
  const { types, begin } = await context.ask(loaderRef, { kind: "describe" }, { timeoutMs: 60_000 });
  phase("opening the device");
  // What was opened is given back where something fails from here on.
  using opened = new DisposableStack();
  const backend = opened.use(await openDevice(config, { open, cpuFallback, notice }));
  const { microBatches, told } = dealt(begin, mesh.size("data"));
  if (position && told) notice(told);
  phase(place.world === 1 ? "building the model" : "meeting the other ranks, building the model");
  if ((position?.batch_count ?? 0) >= config.data.total_steps) {
    notice(
      `Nothing is left to do: data.total_steps is ${config.data.total_steps}; more steps, or a run of its own (another ` +
        "ckpt.save_ckpt_folder), would work",
    );
  }
  if (place.meeting && !meet) throw new TypeError("Cannot meet the other ranks: nobody says how");
  const world = place.meeting ? createWorld(mesh, await meet!(place.meeting)) : solo;
  const session = opened.use(
    await Session.open(config, {
      backend,
      world,
      microBatches,
      draw: !saved, // a checkpoint has every parameter
      datasetTypes: types,
      onNotice: notice,
      ...(record ? { onInstruction: record } : {}),
    }),
  );
  const tuned = backend.choices?.used ?? new Map<string, string>();
  if (tuned.size > 0) {
    notice(
      `Kernels as tuned for ${backend.traits.description}, kept with the run: ` +
        [...tuned].map(([question, form]) => `${question}: ${form}`).join("; "),
    );
  }
  if (saved ?? load) phase(`loading ${saved?.directory ?? load!.path}`);
  let loaded: string | undefined;
  if (saved) {
    restore(session, saved, content, { own: checkpoint !== null });
    recordDifferences(saved, config).forEach(notice);
    if (checkpoint === null) loaded = `${describeContent(content)} of step ${saved.step} (${saved.directory})`;
  } else if (load) {
    const { loadHuggingFace } = await import("../src/train/load_hugging_face.ts");
    loaded = loadHuggingFace(session.trainer.model, load.path);
  }
  opened.move(); // to the rank, which lives on
  return {
    backend,
    world,
    diagnosis: new Diagnosis({ backend, world, ratio: config.data.diag_outlier_ratio }),
    session,
    saving: new Saving({
      session,
      checkpoints,
      monitor,
      runFolder,
      attempt: place.attempt,
      from: checkpoint === null ? -1 : saved!.step,
    }),
    profiling: profile
      ? new Profiling({ session, backend, rank: mesh.rank, folder: runFolder, recorded, tell: notice })
      : undefined,
    loader: loaderRef,
    monitor,
    position: position && begin,
    loaded,
  };
}

/** The device that the record asks for; where none answers and it may, the CPU computes. */
async function openDevice(
  { runtime, model }: ResolvedConfig,
  { open, cpuFallback, notice }: {
    readonly open: RankOptions["backend"];
    readonly cpuFallback: boolean;
    readonly notice: (text: string) => void;
  },
): Promise<Backend> {
  const backend = await open(runtime.backend, deviceOptions(runtime)).catch((error: Error) => {
    // Whoever asks for Dawn wants to know why it does not come.
    if (!cpuFallback || runtime.webgpu === "dawn" || defaultProvider() === "dawn") throw error;
    notice(`${error.message}\nNo GPU: going on with the CPU backend, which is many times slower.`);
    return open("cpu");
  });
  backend.choices?.take(runtime.tuning?.[backend.traits.adapter ?? ""] ?? {});
  if (model.matmul_precision === "split" && !backend.traits.features.matrixUnits) {
    const { description } = backend.traits;
    notice(`model.matmul_precision: split: ${description} shows no matrix units; products are computed in float32`);
  }
  return backend;
}

/** With other ranks than the run began with, each has more or less of the same batch: how much, and that it is so. */
function dealt(begin: DataPosition, replicas: number): { microBatches: number; told?: string } {
  const rows = begin.batch_size * begin.data_world_size, microBatches = Math.ceil(rows / replicas);
  if (begin.data_world_size === replicas) return { microBatches };
  const began = `data.micro_num ${begin.batch_size} on ${countOf(begin.data_world_size, "data-parallel rank")}`;
  const idle = Math.max(0, replicas - rows), most = rows % replicas === 0 ? "" : "at most ";
  const told =
    `A batch of this run stays as it began: ${countOf(rows, "row")} (${began}); on ${replicas} now, each takes ` +
    `${most}${microBatches}` +
    (idle > 0
      ? `, and ${idle} of them ${
        idle === 1 ? "takes" : "take"
      } none: in a run of its own (another ckpt.save_ckpt_folder) all would`
      : "");
  return { microBatches, told };
}

/** @throws where what is saved does not fit the model; of the run's own checkpoint, with what would go on */
function restore(
  session: Session,
  saved: Checkpoint,
  content: readonly LoadContent[],
  { own }: { own: boolean },
): void {
  try {
    session.restore(saved, content);
  } catch (error) {
    if (!own) throw error;
    const otherwise = "another ckpt.save_ckpt_folder, or ckpt.auto_resume: false, begins a new run";
    throw new Error(`${(error as Error).message}. To go on, the record must be the one it was saved by; ${otherwise}`);
  }
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
async function advance(
  state: State,
  ready: Ready,
  context: Own,
  progress: Progress | undefined,
): Promise<void> {
  const { session, saving, loader, monitor, world: { mesh } } = ready, { trainer, config } = session;
  const finished = (ready.position?.batch_count ?? 0) >= config.data.total_steps;
  if (mesh.rank === 0) reportMemory(ready);
  if (!finished && selfTestDue(ready)) await selfTest(ready);
  progress?.enter(phases.data, trainer.stepCount);
  const batch = finished || state.stopping ? undefined : await nextBatch(session, loader, context);
  const problem = batch && "problem" in batch ? batch.problem : undefined;
  const [stopping, problems] = await session.agree([Number(state.stopping), Number(problem !== undefined)]);
  if (finished || stopping! > 0 || problems! > 0) {
    ready.profiling?.end();
    await trainer.gather(); // what is under way ends before the ranks do
    const { unsaved } = await saving.save(ready.position, context, { force: true });
    // Data that is wrong is so after a new start as well; what was learned is kept.
    const outcome = finished ? "finished" : stopping! > 0 ? "stopped" : "failed";
    return state.reply!({
      outcome,
      step: trainer.stepCount,
      ...(problem && outcome === "failed" ? { problem } : {}),
      ...(unsaved ? { unsaved } : {}),
    });
  }
  if (!batch || "problem" in batch) throw new TypeError("there is no batch"); // told above
  ready.position = batch.after;
  if (batch.skipped) {
    if (mesh.logs) monitor.send({ kind: "notice", text: `Skip batch count:\`${batch.batchCount}\`...` });
  } else {
    progress?.enter(phases.step, trainer.stepCount);
    const stepping = ready.profiling ?? session;
    const { record, loss, gradNorm, learningRate, tokensPerSecond, success } = await stepping.step(batch);
    if (mesh.logs) {
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
    }
    if (success && session.evaluationDue) {
      const entered = (done: number, of?: number) => {
        progress?.enter(phases.evaluate, trainer.stepCount);
        if (mesh.logs) monitor.send({ kind: "phase", name: of ? `evaluating ${done}/${of}` : "evaluating" });
      };
      entered(0);
      const records = await session.evaluate(entered);
      if (mesh.logs) monitor.send({ kind: "validation", step: trainer.stepCount, batch: batch.batchCount, records });
    }
    progress?.enter(phases.save, trainer.stepCount);
    const { stop } = await saving.save(ready.position, context);
    if (stop) state.stopping = true;
  }
  context.sendSelf({ kind: "advance" });
}

/** @throws where the loader ended; what is wrong with the data, or with it for this model, is answered. */
async function nextBatch(
  session: Session,
  loader: Ref<typeof dataLoaderProtocol>,
  context: Own,
): Promise<Batch | { readonly problem: string }> {
  try {
    const batch = await context.ask(loader, { kind: "next" }, { timeoutMs: Infinity });
    session.check(batch);
    return batch;
  } catch (error) {
    if (error instanceof AskError && error.failure === "refused") return { problem: plainReason(error) };
    if (error instanceof RangeError) return { problem: error.message }; // a batch that no model of this shape can take
    throw new Error(plainReason(error, "its data loader"), { cause: error });
  }
}

const testEvery = ({ session: { config: { data } } }: Ready): number =>
  data.empty_cache_and_diag_interval > 0 ? data.empty_cache_and_diag_interval : 50;

/** Every so many batches, the same on all ranks; not before the first, when nothing is warm yet. */
function selfTestDue(ready: Ready): boolean {
  const batch = ready.position?.batch_count ?? 0;
  return batch > 0 && batch % testEvery(ready) === 0;
}

/** Device and network of all ranks; one rank of each tested group tells. */
async function selfTest({ diagnosis, monitor, world }: Ready): Promise<void> {
  const { ranks, product, messages, outliers } = await diagnosis.run();
  if (ranks[0] !== world.mesh.rank) {
    for (const text of outliers.filter((text) => text.includes("has slowed down"))) {
      monitor.send({ kind: "alert", text });
    }
    return;
  }
  const list = (seconds: Float32Array) => Array.from(seconds, (time) => (time * 1000).toPrecision(3)).join(", ");
  const text = `self-test of rank ${ranks.join(", ")}: a matrix product took ${list(product)} ms` +
    (ranks.length > 1 ? `, a message and back ${list(messages)} ms` : "");
  monitor.send({ kind: "log", text });
  for (const text of outliers) monitor.send({ kind: "alert", text });
}

/** In the log file, of the first batches and then of every so many: what was planned, and what is in use. */
function reportMemory(ready: Ready): void {
  const { backend, session: { trainer: { model } }, monitor, position } = ready, batch = position?.batch_count ?? 0;
  if (batch > 5 && batch % testEvery(ready) !== 0) return;
  const { rss, heapUsed } = Deno.memoryUsage();
  const text = `memory before batch ${batch}: ${formatBytes(backend.allocatedBytes)} allocated on the device, ` +
    `${formatBytes(model.memory.total)} planned; the rank's process has ${formatBytes(rss)}, ` +
    `of which JavaScript uses ${formatBytes(heapUsed)}`;
  monitor.send({ kind: "log", text });
}
