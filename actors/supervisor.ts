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
import type { ResolvedConfig } from "../src/config/mod.ts";
import { checkpointManagerProtocol } from "./checkpoint_manager.ts";
import { monitorProtocol } from "./monitor.ts";
import { rankProtocol, type Trained } from "./rank.ts";
import {
  actor,
  type ActorSpec,
  AskError,
  type Context,
  describeReason,
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
  /** Silence of the rank's communicator after which the rank is taken for dead. @default {30_000} */
  readonly silenceMs?: number;
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
  beat: { atMs: number; changes: number; changedAtMs: number; phase: string } | undefined;
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
    }),
    async handle(state, message, context) {
      const { monitor } = options;
      const stale = "attempt" in message && message.attempt !== state.attempt;
      if (stale || (state.phase === "finish" && message.kind !== "run")) return state;
      switch (message.kind) {
        case "run":
          state.reply = message.reply;
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
          const { outcome, step, unsaved } = message.result;
          await finish(state, {
            outcome: unsaved ? "failed" : outcome,
            step,
            ...(unsaved ? { reason: `The last checkpoint could not be written: ${unsaved}` } : {}),
          }, context);
          break;
        }
        case "rankEnded":
          await recover(state, message.reason, options, context);
          break;
        case "beat": {
          state.step = message.step;
          const now = context.now(), same = state.beat?.changes === message.changes;
          state.beat = {
            atMs: now,
            changes: message.changes,
            changedAtMs: same ? state.beat!.changedAtMs : now,
            phase: message.phase,
          };
          break;
        }
        case "check": {
          const silent = silence(state, options, context.now());
          if (!silent || !state.rank) break;
          monitor.send({ kind: "alert", text: silent });
          // Its end arrives as any other does.
          context.stop(state.rank).catch((error) => context.log(String(error)));
          break;
        }
        case "stop":
          if (state.stopping || !state.rank || state.phase !== "train") {
            await finish(state, { outcome: "stopped", step: state.step }, context);
            break;
          }
          state.stopping = true;
          monitor.send({
            kind: "notice",
            text: "Stopping after this step and saving; once more to stop without saving",
          });
          state.rank.send({ kind: "stop" });
      }
      return state;
    },
  });

/** Why the rank must be taken for dead, if it must. */
function silence({ beat, step }: State, { config, silenceMs = 30 * second }: SupervisorOptions, now: number) {
  if (!beat) return undefined;
  const quiet = now - beat.atMs, stuck = now - beat.changedAtMs, limit = config.runtime.step_timeout_s * second;
  if (quiet > silenceMs) return `Rank 0 was not heard of for ${Math.round(quiet / second)} s, last at step ${step}`;
  if (limit > 0 && stuck > limit) {
    return `Rank 0 has been at "${beat.phase}" of step ${step} for ${Math.round(stuck / second)} s, ` +
      `longer than runtime.step_timeout_s allows (${config.runtime.step_timeout_s} s)`;
  }
}

/** Starts a rank on the newest checkpoint. */
async function gather(state: State, options: SupervisorOptions, context: Own): Promise<void> {
  const { config, monitor, checkpoints, runFolder } = options;
  state.phase = "initialise";
  const attempt = ++state.attempt;
  state.beat = undefined;
  const resume = config.ckpt.enable_save_ckpt && (config.ckpt.auto_resume || attempt > 1);
  const newest = resume ? await context.ask(checkpoints, { kind: "newest" }, { timeoutMs: Infinity }) : null;
  const rank = state.rank = context.spawn(`rank-${attempt}`, options.rank(attempt));
  context.watch(rank, (reason) => ({ kind: "rankEnded", attempt, reason }));
  rank.ask({
    kind: "initialise",
    config,
    checkpoint: newest?.directory ?? null,
    runFolder,
    cpuFallback: options.cpuFallback,
    monitor,
    checkpoints,
  }, { timeoutMs: Infinity }).then(
    ({ step, batch, parameters, memory, device, software, rows }) => {
      const resumed = newest ? `resumed from step ${step} (${newest.directory})` : "new run";
      const text = `${config.JOB_NAME}: ${resumed}; ${parameters.toLocaleString("en")} parameters, ` +
        `${rows.toLocaleString("en")} rows of data, ${Math.round(memory.total! / 2 ** 20)} MiB planned on ${device}` +
        (software ? " (no GPU: this is slow)" : "");
      context.sendSelf({ kind: "initialised", attempt, step, batch, text });
    },
    (error) => {
      // Anything but a refusal is the rank's end, which arrives by the watch.
      if (error instanceof AskError && error.failure === "refused") {
        context.sendSelf({ kind: "refused", attempt, reason: error.message });
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
  { config, monitor }: SupervisorOptions,
  context: Own,
): Promise<void> {
  const { max_restarts, restart_window_s } = config.runtime;
  const text = `Rank 0 ${describeReason(reason)}`, now = context.now();
  const fail = (why: string) => finish(state, { outcome: "failed", step: state.step, reason: why }, context);
  if (state.stopping) return await fail(`${text} while stopping; the newest checkpoint stands`);
  state.phase = "recover";
  state.rank = undefined;
  const { lastFailure } = state;
  if (reason.kind === "crashed" && lastFailure?.text === text && lastFailure.step === state.step) {
    return await fail(`${text}, twice at step ${state.step}: starting again does not help`);
  }
  state.lastFailure = { text, step: state.step };
  state.restarts = [...state.restarts.filter((at) => at > now - restart_window_s * second), now];
  if (state.restarts.length > max_restarts) {
    return await fail(
      `${text}; ${max_restarts} restarts within ${restart_window_s} s are allowed (runtime.max_restarts), and are used up`,
    );
  }
  monitor.send({ kind: "alert", text: `${text} after step ${state.step}; starting again from the newest checkpoint` });
  context.sendSelf({ kind: "gather" });
}

async function finish(state: State, outcome: Outcome, context: Own): Promise<void> {
  state.phase = "finish";
  if (state.rank) await context.stop(state.rank);
  state.rank = undefined;
  state.reply?.(outcome);
}
