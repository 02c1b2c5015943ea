/**
 * The supervisor: owns the state machine of a run,
 *
 * ```text
 * gather → initialise → train ⇄ recover → finish
 * ```
 *
 * and the restart budget. Whatever ends a rank (a crash, a signal, silence), the answer is the same: all ranks end, and
 * fresh ones start from the newest complete checkpoint. The others hear of it first from their connections, and crash
 * naming the one that is gone; so what is told is the first end that is not of that kind. A refusal is no failure: what is
 * wrong with a record, the data or the device is wrong again next time, and ends the run with its sentence.
 */
import { z } from "zod";
import { createStopFile } from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import { formatBytes } from "../src/observe/format.ts";
import { loadPlanOf } from "../src/train/load.ts";
import type { checkpointManagerProtocol } from "./checkpoint_manager.ts";
import { type Meeting, orphaned } from "./communicator.ts";
import { type Beat, forgiven, heard, silence } from "./heartbeat.ts";
import type { monitorProtocol } from "./monitor.ts";
import type { Initialised, rankProtocol, Trained } from "./rank_protocol.ts";
import {
  actor,
  type ActorSpec,
  AskError,
  type Context,
  describeReason,
  plainReason,
  protocol,
  type Reason,
  reasonSchema,
  type Ref,
  type Reply,
} from "./runtime/mod.ts";

const outcomeSchema = z.object({
  outcome: z.enum(["finished", "stopped", "failed"]),
  step: z.number(),
  /** What is to be told: why the run failed, or what could not be saved. */
  reason: z.string().optional(),
  /** The run was ended at once, without a checkpoint of its last steps. */
  unsaved: z.boolean().optional(),
});
export type Outcome = z.output<typeof outcomeSchema>;

export const supervisorProtocol = protocol({
  requests: {
    /** Runs to the end; answers once. */
    run: { ask: {}, reply: outcomeSchema },
  },
  commands: {
    /** Save and end; said again, end without saving. */
    stop: {},
    /** A sign of life of a rank, from its communicator. */
    beat: {
      rank: z.number(),
      /** Which start of the ranks it is of; one of an earlier start is not heard. */
      attempt: z.number(),
      changes: z.number(),
      phase: z.string(),
      step: z.number(),
    },
  },
});

const internal = {
  gather: {},
  initialised: { attempt: z.number(), rank: z.number(), result: z.custom<Initialised>() },
  refused: { attempt: z.number(), reason: z.string() },
  trained: { attempt: z.number(), rank: z.number(), result: z.custom<Trained>() },
  rankEnded: { attempt: z.number(), rank: z.number(), reason: reasonSchema },
  /** The ranks that outlive the first that ended have had their time. */
  outlived: { attempt: z.number() },
  check: {},
};
type Own = Context<typeof supervisorProtocol, typeof internal>;

/** Who starts, and where the ranks meet. */
export interface Muster {
  readonly config: ResolvedConfig;
  /** Ranks in all. */
  readonly world: number;
  /** Absent for one rank, which meets nobody. */
  readonly meeting?: Meeting;
  /** For people: what is different from the start before. */
  readonly notice?: string;
}

export interface SupervisorOptions {
  readonly config: ResolvedConfig;
  readonly runFolder: string;
  /** Whether the CPU may compute where no adapter answers. */
  readonly cpuFallback: boolean;
  /** Called before each start, counted from 1. @default one rank */
  readonly muster?: (attempt: number) => Promise<Muster>;
  /** How a rank is started: as a process, here or elsewhere, or in this thread. */
  readonly rank: (attempt: number, rank: number) => ActorSpec<typeof rankProtocol>;
  readonly monitor: Ref<typeof monitorProtocol>;
  readonly checkpoints: Ref<typeof checkpointManagerProtocol>;
  /** Ends a living rank by force, for one that would not hear; without it, a rank is told to stop like any actor. */
  readonly kill?: (rank: number) => void;
  /** Told why ranks ended before they were done, when all have. */
  readonly onAccident?: (text: string) => void;
}

/** A rank of the present start. */
interface Member {
  readonly ref: Ref<typeof rankProtocol>;
  initialised?: Initialised;
  trained?: Trained;
  ended?: Reason;
  /** Absent as long as it was not heard of. */
  beat?: Beat;
  /** Why it was killed from here; the signal alone would not tell. */
  killed?: string;
  /** It lived on when others had ended, and was ended from here: that is no cause of anything. */
  outlived?: boolean;
  /** It was told to end, which is said once: in a large world every end would tell all the others again. */
  ending?: boolean;
}

interface State {
  phase: "gather" | "initialise" | "train" | "recover" | "finish";
  reply: Reply<Outcome> | undefined;
  attempt: number;
  /** By rank. */
  members: Member[];
  /** Ends in the order in which they were heard of, each with what it was in the middle of. */
  ends: { rank: number; reason: Reason; when: string }[];
  /** What the present start begins from, in words. */
  from: string | undefined;
  /** Times of restarts, and what ended the ranks at which step, to see that nothing gets better. */
  restarts: number[];
  lastFailure: { text: string; step: number } | undefined;
  /** When it was last looked whether ranks are silent. */
  checkedMs: number;
  stopping: boolean;
  step: number;
}

const second = 1000;
/** How long after a rank's end the cause may still be to come: the others hear of it by their connections first. */
const causeMs = 3000;

export const supervisor = (options: SupervisorOptions) =>
  actor({
    protocol: supervisorProtocol,
    internal,
    initial(context): State {
      const state: State = {
        phase: "gather",
        reply: undefined,
        attempt: 0,
        members: [],
        ends: [],
        from: undefined,
        restarts: [],
        lastFailure: undefined,
        checkedMs: 0,
        stopping: false,
        step: 0,
      };
      // Whatever ends this actor: ranks that train would be asked to stop one after the other.
      context.signal.addEventListener("abort", () => options.kill && endAll(state, options, context));
      return state;
    },
    async handle(state, message, context) {
      const { monitor } = options;
      const stale = "attempt" in message && message.attempt !== state.attempt;
      if (stale || (state.phase === "finish" && message.kind !== "run")) return state;
      switch (message.kind) {
        case "run":
          state.reply = message.reply;
          try {
            if (options.config.ckpt.stop_file_path) await createStopFile(options.config.ckpt.stop_file_path);
          } catch (error) {
            await finish(state, { outcome: "failed", step: 0, reason: (error as Error).message }, options, context);
            break;
          }
          state.checkedMs = context.now();
          context.every(second, { kind: "check" });
          context.sendSelf({ kind: "gather" });
          break;
        case "gather":
          await gather(state, options, context);
          break;
        case "initialised":
          state.members[message.rank]!.initialised = message.result;
          if (state.phase !== "initialise" || state.members.some(({ initialised }) => !initialised)) break;
          begin(state, options);
          train(state, context);
          break;
        case "refused":
          if (state.phase === "recover") break; // it could not meet those that had ended
          await finish(state, { outcome: "failed", step: state.step, reason: message.reason }, options, context);
          break;
        case "trained": {
          state.members[message.rank]!.trained = message.result;
          if (state.phase !== "train" || state.members.some(({ trained }) => !trained)) break;
          const all = state.members.map(({ trained }) => trained!);
          const problem = all.find(({ problem }) => problem)?.problem;
          const unsaved = all.find(({ unsaved }) => unsaved)?.unsaved;
          const { outcome, step } = all[0]!;
          const reasons = [
            ...(problem ? [step > 0 ? `After step ${step}: ${problem}` : problem] : []),
            ...(unsaved ? [`The last checkpoint could not be written: ${unsaved}`] : []),
          ];
          await finish(
            state,
            {
              outcome: unsaved ? "failed" : outcome,
              step,
              ...(reasons.length > 0 ? { reason: reasons.join("\n") } : {}),
            },
            options,
            context,
          );
          break;
        }
        case "rankEnded":
          await ended(state, message.rank, message.reason, options, context);
          break;
        case "outlived":
          for (const member of state.members) member.outlived = true;
          endAll(state, options, context);
          break;
        case "beat": {
          const member = state.members[message.rank];
          if (member) member.beat = heard(member.beat, message, context.now());
          break;
        }
        case "check": {
          const now = context.now(), paused = now - state.checkedMs - second;
          state.checkedMs = now;
          if (paused > second) {
            for (const member of state.members) if (member.beat) member.beat = forgiven(member.beat, paused);
          }
          const since = Math.min(...state.members.map(({ beat }) => beat?.firstMs ?? Infinity));
          state.members.forEach((member, rank) => {
            if (member.killed !== undefined || member.ended) return;
            const why = silence(member.beat, since, options.config.runtime, now);
            if (why === undefined) return;
            member.killed = why;
            end(rank, member, options, context); // and its end arrives as any other does
          });
          break;
        }
        case "stop":
          if (state.stopping || state.members.length === 0 || state.phase !== "train") {
            const done = await stepsDone(state, options, context);
            endAll(state, options, context);
            await finish(state, { outcome: "stopped", step: done, unsaved: done > 0 }, options, context);
            break;
          }
          state.stopping = true;
          monitor.send({
            kind: "notice",
            text: "Stopping after this step and saving (once more: stop at once, without saving) ...",
          });
          for (const { ref } of state.members) ref.send({ kind: "stop" });
      }
      return state;
    },
  });

/** Sees to it that the rank ends, without waiting for it. */
function end(rank: number, member: Member, { kill }: SupervisorOptions, context: Own): void {
  if (member.ending) return;
  member.ending = true;
  const { ref } = member;
  if (kill) kill(rank);
  else context.stop(ref).catch((error) => context.log(String(error)));
}

function endAll(state: State, options: SupervisorOptions, context: Own): void {
  state.members.forEach((member, rank) => member.ended || end(rank, member, options, context));
}

/** Steps whose records arrived: what a dead rank can no longer say. Where there is no monitor just now, the last heard of. */
async function stepsDone(state: State, { monitor }: SupervisorOptions, context: Own): Promise<number> {
  try {
    return (await context.ask(monitor, { kind: "progress" })).step;
  } catch (error) {
    if (!(error instanceof AskError)) throw error;
    return Math.max(state.step, ...state.members.map(({ beat }) => beat?.step ?? 0));
  }
}

/** Starts the ranks on the newest checkpoint. */
async function gather(state: State, options: SupervisorOptions, context: Own): Promise<void> {
  const { monitor, checkpoints, runFolder, muster } = options;
  state.phase = "initialise";
  const attempt = ++state.attempt;
  state.members = [];
  state.ends = [];
  // After a failure the run goes on from what it saved itself, even if it was told to begin from elsewhere.
  const { resume, load } = loadPlanOf(options.config), ofRun = resume ? null : runFolder;
  let newest: { directory: string; step: number } | null = null,
    mustered: Muster = { config: options.config, world: 1 };
  try {
    if (options.config.ckpt.enable_save_ckpt && (resume || attempt > 1)) {
      newest = await context.ask(checkpoints, { kind: "newest", ofRun }, { timeoutMs: Infinity });
    }
    if (muster) mustered = await muster(attempt);
  } catch (error) {
    const reason = plainReason(error, "The checkpoint manager");
    return await finish(state, { outcome: "failed", step: state.step, reason }, options, context);
  }
  const { config, world, meeting = null, notice } = mustered;
  if (notice !== undefined) monitor.send({ kind: "alert", text: notice });
  monitor.send({ kind: "phase", name: world === 1 ? "starting" : `starting ${world} ranks` });
  if (newest && resume && load && attempt === 1) {
    monitor.send({
      kind: "notice",
      text: `The run has a checkpoint of its own, so ${load.path} is not loaded; ckpt.auto_resume: false would load it`,
    });
  }
  state.from = newest ? `from step ${newest.step} (${newest.directory})` : undefined;
  for (let rank = 0; rank < world; rank++) {
    const ref = context.spawn(world === 1 ? `rank-${attempt}` : `rank-${rank}-${attempt}`, options.rank(attempt, rank));
    state.members.push({ ref });
    context.watch(ref, (reason) => ({ kind: "rankEnded", attempt, rank, reason }));
    ref.ask({
      kind: "initialise",
      config,
      checkpoint: newest?.directory ?? null,
      load: newest ? null : load ?? null,
      runFolder,
      cpuFallback: options.cpuFallback,
      monitor,
      checkpoints,
      place: { rank, world, attempt, meeting },
    }, { timeoutMs: Infinity }).then(
      (result) => context.sendSelf({ kind: "initialised", attempt, rank, result }),
      (error) => {
        // Anything but a refusal is the rank's end, which arrives by the watch.
        if (error instanceof AskError && error.failure === "refused") {
          context.sendSelf({ kind: "refused", attempt, reason: plainReason(error) });
        }
      },
    );
  }
}

/** All ranks are ready: says so. */
function begin({ members, attempt, from: resumed }: State, { config, monitor }: SupervisorOptions): void {
  const ranks = members.map(({ initialised }) => initialised!), { step, batch, loaded } = ranks[0]!;
  const from = resumed ?? (loaded && `with ${loaded}`), many = ranks.length > 1, known = sizeOf(ranks);
  const text = attempt > 1
    ? `${many ? `All ${members.length} ranks are back and go` : "Rank 0 is back and goes"} on ` +
      `${from ?? "from the beginning, as nothing was saved yet"}`
    : `${config.JOB_NAME}: ${resumed ? `resumed ${resumed}` : loaded ? `begins ${from}` : "new run"}; ${known}`;
  monitor.send({ kind: "notice", text });
  monitor.send({ kind: "begin", step, batch });
}

/** What a run is, as far as its ranks tell: parameters, data, and the memory that each takes, which stages differ in. */
export function sizeOf(ranks: readonly Initialised[]): string {
  const [{ parameters, rows, device, software }] = ranks as readonly [Initialised];
  const plans = ranks.map(({ memory }) => memory).sort((a, b) => b.total! - a.total!), [memory] = plans;
  const most = plans.at(-1)!.total === memory!.total ? "" : "at most ";
  const room = memory!.room ? ` of ${formatBytes(memory!.room)}` : "";
  return [
    `${parameters.toLocaleString("en")} parameters`,
    rows > 0 ? `${rows.toLocaleString("en")} rows of data` : "streamed data",
    `${most}${formatBytes(memory!.total!)}${room} planned on ${
      ranks.length > 1 ? `each of ${ranks.length} ranks, the first on ` : ""
    }${device}${software ? " (no GPU: this is slow)" : ""}`,
  ].join(", ");
}

function train(state: State, context: Own): void {
  state.phase = "train";
  const { attempt } = state;
  state.step = state.members[0]!.initialised!.step;
  state.members.forEach(({ ref }, rank) => {
    ref.ask({ kind: "train" }, { timeoutMs: Infinity }).then(
      (result) => context.sendSelf({ kind: "trained", attempt, rank, result }),
      () => {}, // the rank's end arrives by the watch
    );
    if (state.stopping) ref.send({ kind: "stop" });
  });
}

/** Whether a rank ended because another had: its connections told it. */
const isConsequence = (reason: Reason) => reason.kind === "crashed" && /\bCommunicationError\b/.test(reason.error);

/** A rank ended before it was done. When all have, others start, within the budget. */
async function ended(
  state: State,
  rank: number,
  reason: Reason,
  options: SupervisorOptions,
  context: Own,
): Promise<void> {
  const { members, attempt } = state, when = state.phase === "initialise" ? "while starting" : undefined;
  members[rank]!.ended = reason;
  if (state.phase !== "recover") {
    state.phase = "recover";
    state.step = await stepsDone(state, options, context);
    context.after(causeMs, { kind: "outlived", attempt });
  }
  const { step } = state;
  state.ends.push({ rank, reason, when: when ?? `with ${step} step${step === 1 ? "" : "s"} done` });
  const cause = state.ends.find((end) => !isConsequence(end.reason) && !members[end.rank]!.outlived);
  if (members.every((member) => member.ended)) return await recover(state, cause ?? state.ends[0]!, options, context);
  if (cause) endAll(state, options, context);
}

/** Starts all ranks again, within the budget. */
async function recover(
  state: State,
  { rank, reason, when }: State["ends"][number],
  options: SupervisorOptions,
  context: Own,
): Promise<void> {
  const { config: { runtime: { max_restarts, restart_window_s } }, monitor } = options;
  const now = context.now(), { members, lastFailure } = state;
  const silent = members.findIndex(({ killed }) => killed !== undefined);
  const text = silent >= 0 ? `Rank ${silent} ${members[silent]!.killed}` : howItEnded(rank, reason, when);
  const fail = (why: string) => finish(state, { outcome: "failed", step: state.step, reason: why }, options, context);
  options.onAccident?.(text);
  if (state.stopping) return await fail(`While stopping and saving: ${text}; the newest checkpoint stands`);
  // A connection may well break twice at the same place.
  const again = lastFailure?.text === text && lastFailure.step === state.step;
  if (again && reason.kind === "crashed" && !isConsequence(reason)) {
    return await fail(`${text} (this came twice, so starting again does not help)`);
  }
  state.lastFailure = { text, step: state.step };
  state.restarts = [...state.restarts.filter((at) => at > now - restart_window_s * second), now];
  const budget = `${max_restarts} within ${restart_window_s} s`;
  if (state.restarts.length > max_restarts) {
    return await fail(
      `${text} (its restarts are used up: runtime.max_restarts allows ${budget}; the same command goes on)`,
    );
  }
  const whom = members.length === 1 ? "it" : "all ranks";
  monitor.send({
    kind: "alert",
    text: `${text}; starting ${whom} again (restart ${state.restarts.length}, of ${budget})`,
  });
  state.members = [];
  context.sendSelf({ kind: "gather" });
}

/** @param when it ended, in words */
function howItEnded(rank: number, reason: Reason, when: string): string {
  switch (reason.kind) {
    case "killed":
      return `Rank ${rank} was killed by ${reason.signal} ${when}`;
    case "lost":
      return `Rank ${rank} was lost ${when} (${reason.detail})`;
    case "crashed":
      // Whoever tells of it is not the one that failed.
      if (isConsequence(reason)) return `Ranks lost each other ${when}: ${reason.error.replace(/^\w*Error: /, "")}`;
      // The sentence says what the error's name would.
      return `Rank ${rank} crashed ${when}: ${reason.error.replace(/^(\w*Error|NotFound): /, "")}`;
    case "exited":
      // Only a process that stood still can be told so: the root's end is the end of all.
      if (reason.code === orphaned) return `Rank ${rank} left ${when}, as this process did not answer it`;
      // falls through
    default:
      return `Rank ${rank} ${describeReason(reason)} ${when}`;
  }
}

async function finish(state: State, outcome: Outcome, options: SupervisorOptions, context: Own): Promise<void> {
  state.phase = "finish";
  // Ranks of a failed run may wait for each other: they cannot be asked to stop.
  if (outcome.outcome === "failed" && state.members.length > 1) endAll(state, options, context);
  await Promise.all(state.members.map(({ ref }) => context.stop(ref)));
  state.members = [];
  state.reply?.(outcome);
}
