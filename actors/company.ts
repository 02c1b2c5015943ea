/**
 * The company of a run in the root's process, as one supervision tree:
 *
 * ```text
 * company: at most 5 restarts in 3600 s
 * ├─ monitor
 * ├─ checkpoint manager
 * └─ supervisor: significant
 * ```
 *
 * Monitor and checkpoint manager know nothing that is not on disk, so one that crashes is started again while the ranks
 * train on; a save that it was at fails, as one does on a full disk. The supervisor alone knows what its children, the
 * ranks, are at (supervisor.ts): its end is the end of the run, and so is the end of one that crashes more often than the
 * record allows.
 */
import { checkpointManagerProtocol } from "./checkpoint_manager.ts";
import { type Curve, monitor, type MonitorOptions, monitorProtocol } from "./monitor.ts";
import {
  type ActorSpec,
  AskError,
  describeReason,
  Ended,
  type Reason,
  type Ref,
  type Runtime,
  supervise,
} from "./runtime/mod.ts";
import { type Outcome, supervisor, type SupervisorOptions, supervisorProtocol } from "./supervisor.ts";

/** The company's members by reference. These outlive restarts. */
export interface Members {
  readonly monitor: Ref<typeof monitorProtocol>;
  readonly checkpoints: Ref<typeof checkpointManagerProtocol>;
  readonly supervisor: Ref<typeof supervisorProtocol>;
}

export interface CompanyOptions {
  readonly monitor: MonitorOptions;
  readonly checkpoints: ActorSpec<typeof checkpointManagerProtocol>;
  readonly supervisor: Omit<SupervisorOptions, "monitor" | "checkpoints">;
}

export interface Company extends Members {
  /** Runs to the end, whatever it is. */
  run(): Promise<Outcome>;
  /** Has the monitor write everything out and draw the curve, while there is one. */
  finish(): Promise<Curve>;
}

/** What the company is called in its runtime's log. */
export const companyName = "company";

/** The members of the runtime's company, whether or not it has started. */
export const membersOf = (runtime: Runtime): Members => ({
  monitor: runtime.lookup(monitorProtocol, `${companyName}/monitor`),
  checkpoints: runtime.lookup(checkpointManagerProtocol, `${companyName}/checkpoint manager`),
  supervisor: runtime.lookup(supervisorProtocol, `${companyName}/supervisor`),
});

/** The tree as a value, of which `describeTree` makes text. */
export function companyTree(options: CompanyOptions, { monitor: monitorRef, checkpoints }: Members) {
  const { max_restarts, restart_window_s } = options.supervisor.config.runtime;
  let monitors = 0;
  return supervise([
    { name: "monitor", start: () => monitor({ ...options.monitor, continues: monitors++ > 0 }) },
    { name: "checkpoint manager", start: options.checkpoints },
    {
      name: "supervisor",
      start: supervisor({ ...options.supervisor, monitor: monitorRef, checkpoints }),
      significant: true,
    },
  ], { maxRestarts: max_restarts, withinMs: restart_window_s * 1000 });
}

/** Why the tree ended, in a sentence. */
const sentence = (reason: Reason) =>
  `The ${reason.kind === "crashed" ? reason.error.replace(/^Error: /, "") : `company ${describeReason(reason)}`}`;

/** @throws when a member cannot be started, naming it */
export async function startCompany(runtime: Runtime, options: CompanyOptions): Promise<Company> {
  const members = membersOf(runtime), tree = runtime.spawn(companyName, companyTree(options, members));
  await runtime.started(tree).catch((error) => {
    throw error instanceof Ended ? new Error(sentence(error.reason), { cause: error }) : error;
  });
  return {
    ...members,
    async run() {
      try {
        return await members.supervisor.ask({ kind: "run" }, { timeoutMs: Infinity });
      } catch (error) {
        if (!(error instanceof AskError)) throw error;
        const reason = await runtime.terminated(tree); // it does not outlive the supervisor
        return { outcome: "failed", step: 0, reason: `${sentence(reason)}; the same command goes on` };
      }
    },
    async finish() {
      try {
        return await members.monitor.ask({ kind: "finish" }, { timeoutMs: 60_000 });
      } catch (error) {
        if (error instanceof AskError) return {};
        throw error;
      }
    },
  };
}
