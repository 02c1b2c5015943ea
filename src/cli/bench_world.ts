/**
 * `troupe bench world`: the control plane of a run on many hosts, in one process. The hosts' members, the supervisor, the
 * communicators and their beats are those of a real run, over authenticated loopback connections; a rank is an actor that
 * answers the supervisor and computes nothing, and ranks do not connect to each other.
 */
import { communicator } from "../../actors/communicator.ts";
import { checkpointManager } from "../../actors/checkpoint_manager.ts";
import { membersOf, startCompany } from "../../actors/company.ts";
import { openHosts, type Seat } from "../../actors/hosts.ts";
import type { RankStart } from "../../actors/hosts_protocol.ts";
import { joinHosts } from "../../actors/member.ts";
import { Progress } from "../../actors/progress.ts";
import { rankProtocol, type Trained } from "../../actors/rank_protocol.ts";
import {
  actor,
  channelPair,
  createRuntime,
  type Host,
  hosted,
  type Reason,
  type Ref,
  remote,
  type Reply,
  type Runtime,
} from "../../actors/runtime/mod.ts";
import { realScheduler, type Scheduler } from "../../actors/runtime/scheduler.ts";
import { listenControl } from "../comm/control.ts";
import { resolveConfig } from "../config/mod.ts";
import { Display } from "../observe/display.ts";
import { FlightRecorder } from "../observe/flight_recorder.ts";
import { makeRunFolder, runFolder } from "../observe/run_folder.ts";
import { type Report, round, secondsSince } from "./bench_line.ts";
import { nothingInitialised } from "../../actors/stub_rank.ts";

const hostname = "127.0.0.1", version = "bench";
const stubbed = "control plane only: ranks are actors that answer and compute nothing, all hosts in one process";
/** Beats that are sent at once, a rank, to see how many the supervisor handles a second. */
const burst = 20;

export interface BenchWorldOptions {
  /** Hosts of one rank each, beside the root. */
  readonly hosts: number;
  /** How long heartbeats are watched. */
  readonly seconds: number;
  /** Where the run's folder may lie meanwhile. @default the current one */
  readonly folder?: string;
  readonly report: Report;
}

/** Turns of one runtime's actors, counted and timed. */
function meter() {
  const spent = { turns: 0, ms: 0 };
  const timed = <T>(work: () => T): T => {
    const began = performance.now();
    try {
      return work();
    } finally {
      spent.ms += performance.now() - began;
    }
  };
  const real = realScheduler();
  const scheduler: Scheduler = {
    ...real,
    post: (turn) =>
      real.post(() => {
        spent.turns++;
        timed(turn);
      }),
  };
  return { spent, timed, scheduler };
}

/** Resolves when `arrive` was called so many times, with the time of the last. */
function countdown(count: number) {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  let left = count;
  return { all: promise, fail: reject, arrive: () => void (--left === 0 && resolve(performance.now())) };
}

/** A rank that joins the root by a real communicator, then waits to be told to stop. */
const waitingRank = ({ rank, attempt, control }: RankStart, token: string, onTrain: () => void) =>
  actor({
    protocol: rankProtocol,
    initial: () => ({ trained: undefined as Reply<Trained> | undefined }),
    async handle(state, message, context) {
      switch (message.kind) {
        case "initialise": {
          const progress = new Progress(), recorder = new FlightRecorder();
          const ref = context.spawn("communicator", communicator({ kill: () => {} }));
          const memory = { progress: progress.memory, recorder: recorder.memory };
          await context.ask(ref, { kind: "join", ...control, token, rank, attempt, ...memory }, { timeoutMs: 60_000 });
          message.reply(nothingInitialised);
          break;
        }
        case "train":
          state.trained = message.reply;
          onTrain();
          break;
        case "stop":
          state.trained?.({ outcome: "stopped", step: 0 });
      }
      return state;
    },
  });

/** The rank's actor behind a channel, as a process would be. */
function startHere(runtime: Runtime, name: string, spec: ReturnType<typeof waitingRank>, onKill: () => void): Host {
  const [channel, far] = channelPair(), { promise: ended, resolve } = Promise.withResolvers<Reason>();
  const link = remote(runtime, far, { name: "parent", stoppable: true });
  const ref: Ref = runtime.spawn(name, spec);
  link.export("main", ref);
  const leave = async (reason: Reason) => {
    await runtime.stopActor(ref);
    channel.close();
    resolve(reason);
  };
  let killed = false;
  link.closed.then(() => {
    if (!killed) void leave({ kind: "exited", code: 0 });
  });
  return {
    channel,
    ended,
    kill() {
      if (killed) return;
      killed = true;
      onKill();
      void leave({ kind: "killed", signal: "SIGKILL", number: 9 });
    },
  };
}

/** @throws {Error} when the hosts do not join, or the run does not go on after one has failed */
export async function benchWorld(
  { hosts: count, seconds, folder: parent = ".", report }: BenchWorldOptions,
): Promise<void> {
  const folder = Deno.makeTempDirSync({ dir: parent, prefix: ".troupe-bench-" });
  const token = crypto.randomUUID(), root = meter(), quiet = { log: () => {}, onDeadLetter: () => {} };
  const runtime = createRuntime({ ...quiet, scheduler: root.scheduler }), elsewhere = createRuntime(quiet);
  const line = (figure: string, value: number, unit: string, measured: string) =>
    report({ bench: "world", figure, value: round(value), unit, hosts: count, measured: `${measured}; ${stubbed}` });
  const notices: string[] = [];
  let beats = 0, training = countdown(count), killed = countdown(count - 1);
  const failed = (error: unknown) => training.fail(error);
  const leaving = Array.from({ length: count }, () => new AbortController()), joined: Promise<unknown>[] = [];
  const config = resolveConfig({
    model: { num_layers: 1, hidden_size: 8, num_attention_heads: 2 },
    data: { seq_len: 8, micro_bsz: 1, total_steps: 1 },
    adam: { lr: 1 },
    ckpt: { enable_save_ckpt: false },
  }, { worldSize: count });
  try {
    const run = runFolder({ jobName: "world", startTime: new Date(0), root: folder });
    makeRunFolder(run);
    const display = new Display({ output: { isTerminal: false, columns: () => 80, write: () => {} }, everySeconds: 0 });
    const { supervisor } = membersOf(runtime);
    await using control = listenControl({
      hostname,
      port: 0,
      token,
      onValue(value) {
        beats++;
        const { rank, attempt, changes, phase, step } = value as
          & Record<"rank" | "attempt" | "changes" | "step", number>
          & {
            phase: string;
          };
        root.timed(() => supervisor.send({ kind: "beat", rank, attempt, changes, phase, step }));
      },
      onRefused: (reason) => notices.push(reason),
    });
    await using hosts = openHosts({
      hostname,
      port: 0,
      token,
      encrypt: false,
      nproc: 0,
      world: count,
      version,
      record: "",
      onNotice: (text) => notices.push(text),
      onStop: () => {},
    });
    const join = (name: string, leave: AbortController) => {
      const start = (begin: RankStart) =>
        startHere(
          elsewhere,
          `${name}-${begin.attempt}`,
          waitingRank(begin, token, () => training.arrive()),
          () => killed.arrive(),
        );
      const { promise, resolve: admitted } = Promise.withResolvers<void>();
      const member = joinHosts({
        root: { hostname, port: hosts.port },
        token,
        encrypt: false,
        name,
        nproc: 1,
        version,
        record: () => "",
        start,
        onNotice: () => admitted(),
        timeoutMs: 60_000,
        signal: new AbortController().signal,
        leave: leave.signal,
      });
      joined.push(member.catch(failed));
      return Promise.race([promise, training.all]);
    };

    let began = performance.now(), seats: Seat[] = [];
    // All at one instant, as a scheduler starts them; both ends of every handshake share this thread.
    await Promise.all(leaving.map((leave, at) => join(`host-${at}`, leave)));
    const patience = { patienceMs: 120_000, timeoutMs: 120_000 };
    await Promise.race([hosts.muster(patience), training.all]);
    line(
      "joining",
      secondsSince(began),
      "s",
      "until the root has admitted all hosts, which all dial at one instant",
    );

    const living = new Map<number, Host>();
    began = performance.now();
    const company = await startCompany(runtime, {
      monitor: { folder: run, totalSteps: 1, title: "", json: false, display },
      checkpoints: checkpointManager({ folder, keepLast: 0, config: "", layout: {} }),
      supervisor: {
        config,
        runFolder: run.path,
        cpuFallback: false,
        async muster() {
          seats = await hosts.muster(patience);
          return { config, world: count };
        },
        rank: (attempt, rank) =>
          hosted(rankProtocol, () => {
            const seat = seats[rank]!, port = { hostname, port: control.port };
            const place = {
              rank,
              attempt,
              localRank: 0,
              world: count,
              control: port,
              write: [],
              net: hosts.addresses(),
            };
            const host = hosts.start(seat, place);
            living.set(rank, host);
            return host;
          }, { startTimeoutMs: 120_000 }),
        kill: (rank) => living.get(rank)?.kill(),
      },
    });
    const outcome = company.run();
    outcome.then(({ reason }) => failed(new Error(reason ?? "the run ended")), failed);
    line(
      "starting",
      (await training.all - began) / 1000,
      "s",
      "from there until every rank was started, has joined and trains",
    );

    const before = { ...root.spent, beats };
    began = performance.now();
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    const watched = secondsSince(began), heard = beats - before.beats;
    if (heard === 0) throw new Error(`No rank was heard of in ${watched} s: ${notices.at(-1) ?? "nobody says why"}`);
    line(
      "heartbeat_round",
      (root.spent.ms - before.ms) / (heard / count),
      "ms",
      `the root's time for one beat of every rank, of ${heard} beats in ${watched.toFixed(1)} s`,
    );
    line("memory", Deno.memoryUsage().rss / 2 ** 20, "MiB", "resident, root and all members together");

    const { turns } = root.spent, many = burst * count;
    const sent = { kind: "beat", attempt: 1, changes: 0, phase: "step", step: 0 } as const;
    began = performance.now();
    for (let i = 0; i < many; i++) supervisor.send({ ...sent, rank: i % count });
    while (root.spent.turns - turns < many) await new Promise((resolve) => setImmediate(resolve));
    line(
      "messages",
      many / secondsSince(began),
      "messages/s",
      `checked and handled by the supervisor, of ${many} at once`,
    );

    // A scheduler would start another in its place.
    training = countdown(count);
    killed = countdown(count - 1);
    began = performance.now();
    leaving[count >> 1]!.abort();
    const replacement = new AbortController();
    leaving.push(replacement);
    while (hosts.ranks === count) await new Promise((resolve) => setTimeout(resolve, 1));
    line(
      "failure_noticed",
      secondsSince(began),
      "s",
      "from a host's failure, its connection closed, until the root knows",
    );
    void join("replacement", replacement);
    line(
      "failure_told",
      (await Promise.race([killed.all, training.all]) - began) / 1000,
      "s",
      "from the failure until every other host was told to end its rank",
    );
    line(
      "failure_recovered",
      (await training.all - began) / 1000,
      "s",
      "from the failure until all ranks train again, one of them on a new host",
    );

    supervisor.send({ kind: "stop" });
    await outcome;
    await hosts.finish(0, "");
    await Promise.all(joined);
  } finally {
    for (const leave of leaving) leave.abort();
    await Promise.all(joined);
    await runtime.stop();
    await elsewhere.stop();
    Deno.removeSync(folder, { recursive: true });
  }
}
