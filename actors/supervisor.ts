/**
 * The supervisor: owns the state machine of a run,
 *
 * ```text
 * gather → initialise → train ⇄ recover → finish
 * ```
 *
 * and the restart budget. Whatever ends a rank (a crash, a signal, silence), the answer is the same: a fresh one starts
 * from the newest complete checkpoint. A refusal is no failure: what is wrong with a record, the data or the device is
 * wrong again next time, and ends the run with its sentence.
 */
import { z } from "zod";
import { createStopFile } from "../src/checkpoint/mod.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import { formatBytes } from "../src/observe/format.ts";
import { loadPlanOf } from "../src/train/load.ts";
import type { checkpointManagerProtocol } from "./checkpoint_manager.ts";
import type { monitorProtocol } from "./monitor.ts";
import type { rankProtocol, Trained } from "./rank.ts";
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
    /** A sign of life of the rank, from its communicator. */
    beat: { changes: z.number(), phase: z.string(), step: z.number() },
  },
});

const internal = {
  gather: {},
  initialised: { attempt: z.number(), step: z.number(), batch: z.number(), text: z.string() },
  refused: { attempt: z.number(), reason: z.string() },
  trained: { attempt: z.number(), result: z.custom<Trained>() },
  rankEnded: { attempt: z.number(), reason: reasonSchema },
  check: {},
};
type Own = Context<typeof supervisorProtocol, typeof internal>;

export interface SupervisorOptions {
  readonly config: ResolvedConfig;
  readonly runFolder: string;
  /** Whether the CPU may compute where no adapter answers. */
  readonly cpuFallback: boolean;
  /** How a rank is started: as a process, or in this thread. */
  readonly rank: (attempt: number) => ActorSpec<typeof rankProtocol>;
  readonly monitor: Ref<typeof monitorProtocol>;
  readonly checkpoints: Ref<typeof checkpointManagerProtocol>;
  /** Ends the living rank by force, for one that would not hear; without it, a rank is told to stop like any actor. */
  readonly kill?: () => void;
}

interface State {
  phase: "gather" | "initialise" | "train" | "recover" | "finish";
  reply: Reply<Outcome> | undefined;
  attempt: number;
  rank: Ref<typeof rankProtocol> | undefined;
  /** Times of restarts, and what ended the rank at which step, to see that nothing gets better. */
  restarts: number[];
  lastFailure: { text: string; step: number } | undefined;
  stopping: boolean;
  step: number;
  /** The last sign of life, and the last change of the progress word. */
  beat: { atMs: number; changes: number; changedAtMs: number; phase: string; step: number } | undefined;
  /** Why the rank was killed from here; the signal alone would not tell. */
  killed: string | undefined;
}

const second = 1000;

export const supervisor = (options: SupervisorOptions) =>
  actor({
    protocol: supervisorProtocol,
    internal,
    initial: (): State => ({
      phase: "gather",
      reply: undefined,
      attempt: 0,
      rank: undefined,
      restarts: [],
      lastFailure: undefined,
      stopping: false,
      step: 0,
      beat: undefined,
      killed: undefined,
    }),
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
            await finish(state, { outcome: "failed", step: 0, reason: (error as Error).message }, context);
            break;
          }
          context.every(second, { kind: "check" });
          context.sendSelf({ kind: "gather" });
          break;
        case "gather":
          await gather(state, options, context);
          break;
        case "initialised":
          state.step = message.step;
          monitor.send({ kind: "begin", step: message.step, batch: message.batch });
          monitor.send({ kind: "notice", text: message.text });
          train(state, context);
          break;
        case "refused":
          await finish(state, { outcome: "failed", step: state.step, reason: message.reason }, context);
          break;
        case "trained": {
          const { outcome, step, problem, unsaved } = message.result;
          const reasons = [
            ...(problem ? [step > 0 ? `After step ${step}: ${problem}` : problem] : []),
            ...(unsaved ? [`The last checkpoint could not be written: ${unsaved}`] : []),
          ];
          await finish(state, {
            outcome: unsaved ? "failed" : outcome,
            step,
            ...(reasons.length > 0 ? { reason: reasons.join("\n") } : {}),
          }, context);
          break;
        }
        case "rankEnded":
          await recover(state, message.reason, options, context);
          break;
        case "beat": {
          const now = context.now(), same = state.beat?.changes === message.changes;
          state.beat = {
            atMs: now,
            changes: message.changes,
            changedAtMs: same ? state.beat!.changedAtMs : now,
            phase: message.phase,
            step: message.step,
          };
          break;
        }
        case "check": {
          if (state.killed || !state.rank) break;
          state.killed = silence(state, options, context.now());
          if (state.killed) end(state.rank, options, context); // and its end arrives as any other does
          break;
        }
        case "stop":
          if (state.stopping || !state.rank || state.phase !== "train") {
            const done = await stepsDone(options, context);
            if (state.rank) end(state.rank, options, context);
            await finish(state, { outcome: "stopped", step: done, unsaved: done > 0 }, context);
            break;
          }
          state.stopping = true;
          monitor.send({
            kind: "notice",
            text: "Stopping after this step and saving (once more: stop at once, without saving) ...",
          });
          state.rank.send({ kind: "stop" });
      }
      return state;
    },
  });

/** Phases whose time depends on the disk and the driver too: they may take so many times `step_timeout_s`. */
const patience: Readonly<Record<string, number>> = { start: 10, initialise: 10, save: 10 };

/** Why the rank must be taken for dead, if it must. */
function silence({ beat }: State, { config }: SupervisorOptions, now: number) {
  if (!beat) return undefined;
  const quiet = now - beat.atMs, stuck = now - beat.changedAtMs, { step_timeout_s, silence_timeout_s } = config.runtime;
  const limit = step_timeout_s * (patience[beat.phase] ?? 1);
  if (quiet > silence_timeout_s * second) {
    return `was not heard of for ${Math.round(quiet / second)} s, last at "${beat.phase}" after step ${beat.step}, ` +
      "and was killed";
  }
  if (limit > 0 && stuck > limit * second) {
    return `was at "${beat.phase}" after step ${beat.step} for ${Math.round(stuck / second)} s, longer than ` +
      `runtime.step_timeout_s: ${step_timeout_s} allows (${limit} s), and was killed`;
  }
}

/** Sees to it that the rank ends, without waiting for it. */
function end(rank: Ref<typeof rankProtocol>, { kill }: SupervisorOptions, context: Own): void {
  kill?.();
  if (!kill) context.stop(rank).catch((error) => context.log(String(error)));
}

/** Steps whose records arrived: what a dead rank can no longer say. */
async function stepsDone({ monitor }: SupervisorOptions, context: Own): Promise<number> {
  return (await context.ask(monitor, { kind: "progress" })).step;
}

/** Starts a rank on the newest checkpoint. */
async function gather(state: State, options: SupervisorOptions, context: Own): Promise<void> {
  const { config, monitor, checkpoints, runFolder } = options;
  state.phase = "initialise";
  const attempt = ++state.attempt;
  state.beat = state.killed = undefined;
  // After a failure the run goes on from what it saved itself, even if it was told to begin from elsewhere.
  const { resume, load } = loadPlanOf(config), ofRun = resume ? null : runFolder;
  let newest: { directory: string; step: number } | null = null;
  try {
    if (config.ckpt.enable_save_ckpt && (resume || attempt > 1)) {
      newest = await context.ask(checkpoints, { kind: "newest", ofRun }, { timeoutMs: Infinity });
    }
  } catch (error) {
    return await finish(state, { outcome: "failed", step: state.step, reason: plainReason(error) }, context);
  }
  if (newest && resume && load && attempt === 1) {
    monitor.send({
      kind: "notice",
      text: `The run has a checkpoint of its own, so ${load.path} is not loaded; ckpt.auto_resume: false would load it`,
    });
  }
  const rank = state.rank = context.spawn(`rank-${attempt}`, options.rank(attempt));
  context.watch(rank, (reason) => ({ kind: "rankEnded", attempt, reason }));
  rank.ask({
    kind: "initialise",
    config,
    checkpoint: newest?.directory ?? null,
    load: newest ? null : load ?? null,
    runFolder,
    cpuFallback: options.cpuFallback,
    monitor,
    checkpoints,
  }, { timeoutMs: Infinity }).then(
    ({ step, batch, loaded, parameters, memory, device, software, rows }) => {
      const from = newest ? `from step ${step} (${newest.directory})` : loaded && `with ${loaded}`;
      const known = `${parameters.toLocaleString("en")} parameters, ${rows.toLocaleString("en")} rows of data, ` +
        `${formatBytes(memory.total!)} planned on ${device}${software ? " (no GPU: this is slow)" : ""}`;
      const text = attempt > 1
        ? `Rank 0 is back and goes on ${from ?? "from the beginning, as nothing was saved yet"}`
        : `${config.JOB_NAME}: ${newest ? `resumed ${from}` : loaded ? `begins ${from}` : "new run"}; ${known}`;
      context.sendSelf({ kind: "initialised", attempt, step, batch, text });
    },
    (error) => {
      // Anything but a refusal is the rank's end, which arrives by the watch.
      if (error instanceof AskError && error.failure === "refused") {
        context.sendSelf({ kind: "refused", attempt, reason: plainReason(error) });
      }
    },
  );
}

function train(state: State, context: Own): void {
  state.phase = "train";
  const { attempt } = state;
  state.rank!.ask({ kind: "train" }, { timeoutMs: Infinity }).then(
    (result) => context.sendSelf({ kind: "trained", attempt, result }),
    () => {}, // the rank's end arrives by the watch
  );
  if (state.stopping) state.rank!.send({ kind: "stop" });
}

/** A rank ended before it was done: starts another, within the budget. */
async function recover(
  state: State,
  reason: Reason,
  options: SupervisorOptions,
  context: Own,
): Promise<void> {
  const { config: { runtime: { max_restarts, restart_window_s } }, monitor } = options;
  const now = context.now();
  state.step = await stepsDone(options, context);
  const when = state.phase === "initialise"
    ? "while starting"
    : `with ${state.step} step${state.step === 1 ? "" : "s"} done`;
  const text = state.killed ? `Rank 0 ${state.killed}` : howItEnded(reason, when);
  const fail = (why: string) => finish(state, { outcome: "failed", step: state.step, reason: why }, context);
  if (state.stopping) return await fail(`While stopping and saving: ${text}; the newest checkpoint stands`);
  state.phase = "recover";
  state.rank = undefined;
  const { lastFailure } = state;
  if (reason.kind === "crashed" && lastFailure?.text === text && lastFailure.step === state.step) {
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
  const again = `starting it again (restart ${state.restarts.length}, of ${budget})`;
  monitor.send({ kind: "alert", text: `${text}; ${again}` });
  context.sendSelf({ kind: "gather" });
}

/** @param when it ended, in words */
function howItEnded(reason: Reason, when: string): string {
  switch (reason.kind) {
    case "killed":
      return `Rank 0 was killed by ${reason.signal} ${when}`;
    case "lost":
      return `Rank 0 was lost ${when} (${reason.detail})`;
    case "crashed":
      // The sentence says what the error's name would.
      return `Rank 0 crashed ${when}: ${reason.error.replace(/^(\w*Error|NotFound): /, "")}`;
    default:
      return `Rank 0 ${describeReason(reason)} ${when}`;
  }
}

async function finish(state: State, outcome: Outcome, context: Own): Promise<void> {
  state.phase = "finish";
  if (state.rank) await context.stop(state.rank);
  state.rank = undefined;
  state.reply?.(outcome);
}
