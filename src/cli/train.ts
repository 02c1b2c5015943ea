/** `troupe train`: starts the company that a run record describes, and stays with it to the end. */
import { dirname } from "node:path";
import { checkpointManager } from "../../actors/checkpoint_manager.ts";
import { companyName, membersOf, startCompany } from "../../actors/company.ts";
import { openHosts } from "../../actors/hosts.ts";
import { joinHosts } from "../../actors/member.ts";
import type { TensorBoardSettings } from "../../actors/monitor.ts";
import { rankProtocol } from "../../actors/rank_protocol.ts";
import { createRuntime, hosted } from "../../actors/runtime/mod.ts";
import type { Outcome } from "../../actors/supervisor.ts";
import { type Json, listCheckpoints, openCheckpoint, parseStoragePath } from "../checkpoint/mod.ts";
import { listenControl } from "../comm/control.ts";
import { printResolved, type ResolvedConfig } from "../config/mod.ts";
import { type AlertSender, createAlertSender } from "../observe/alert_sender.ts";
import { alertTitle } from "../observe/alerts.ts";
import { BlackBox, writeBlackBox } from "../observe/black_box.ts";
import type { FlightRecord } from "../observe/flight_recorder.ts";
import { makeNewRunFolder, makeRunFolder, type RunFolder, runFolderAt } from "../observe/run_folder.ts";
import { holdAlone } from "./alone.ts";
import { onInterrupt } from "./interrupt.ts";
import { ArgumentError, type DefaultArguments } from "./parser.ts";
import { detectLaunch, type Launch } from "./launch.ts";
import { meetingMs, Places } from "./places.ts";
import { keepProcessNote } from "./process_note.ts";
import { rankVariables } from "./rank_variables.ts";
import { withTuning } from "./run_tuning.ts";
import { sharedTablesFolder } from "../data/shared_tables.ts";
import { hostSockets, startRankProcess } from "./rank_process.ts";
import { requireRoomForRanks } from "./room_for_ranks.ts";
import { programVersion } from "./self.ts";
import { getRecordParser, recordFromArguments, resolveWritten, say, type Verb, writtenRecord } from "./verb.ts";
import { requireAllowed, requireWritable } from "./writable.ts";

const summary = "train the model of a run record (configs/demo.yaml when none is named)";

/** The folder of the run that is resumed, if one is. */
function resumedRunFolder(config: ResolvedConfig, checkpoints: readonly string[]): RunFolder | undefined {
  if (!config.ckpt.auto_resume) return undefined;
  const newest = listCheckpoints(checkpoints).find(({ status }) => status === "complete");
  if (!newest) return undefined;
  using checkpoint = openCheckpoint(newest.directory);
  const path = (checkpoint.manifest.state as { run_folder?: unknown }).run_folder;
  return typeof path === "string" ? runFolderAt(path) : undefined;
}

function newRunFolder({ runtime: { run_dir } }: ResolvedConfig): RunFolder {
  const name = run_dir.split("/").at(-1)!, root = run_dir.slice(0, -name.length - 1) || ".";
  return makeNewRunFolder({ jobName: name, startTime: new Date(), root });
}

export const train: Verb = {
  summary,
  async run(args) {
    const parser = getRecordParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("train", summary));
      return 0;
    }
    const launch = detectLaunch(parsed, Deno.env.toObject());
    if (!(parsed.port >= 0 && parsed.port <= 65535)) {
      throw new ArgumentError(`--port: ${parsed.port} is no port; a number from 1024 to 65535 would work`);
    }
    // A start that cannot be is refused before anything is read or written.
    const token = launch.role === "alone" ? crypto.randomUUID() : sharedToken();
    if (launch.role === "member") return await beMember(parsed, launch, token);
    const record = await recordFromArguments(parsed, { worldSize: launch.world });
    requireRoomForRanks(record.runtime.nproc);
    const { ckpt } = record;
    const pathOf = (folder: string | null) => folder ? parseStoragePath(folder) : undefined;
    const folder = ckpt.enable_save_ckpt ? pathOf(ckpt.save_ckpt_folder) : undefined;
    const snapshots = folder && ckpt.oss_snapshot_freq ? pathOf(ckpt.snapshot_ckpt_folder) : undefined;
    const folders = [folder, snapshots].filter((path) => path !== undefined);
    if (folder) requireWritable("ckpt.save_ckpt_folder", folder);
    const resumed = resumedRunFolder(record, folders), { run_dir } = record.runtime;
    requireWritable("runtime.run_dir", resumed && !resumed.path.startsWith(`${run_dir}/`) ? resumed.path : run_dir);
    using _alone = folder ? holdAlone("ckpt.save_ckpt_folder", folder) : undefined;
    if (snapshots) requireWritable("ckpt.snapshot_ckpt_folder", snapshots);
    const { stop_file_path: stopFile } = ckpt;
    if (stopFile) requireAllowed("ckpt.stop_file_path", stopFile, dirname(stopFile));
    const retuned = await retune(parsed, record, launch);
    const config = withTuning(record, { folders, retuned, onNotice: say });
    const run = resumed ?? newRunFolder(record);
    if (resumed) makeRunFolder(resumed);
    const { use_shm: share, shm_path: shm, train_folder } = record.data;
    const tables = share && train_folder !== null && record.data.type === "tokenized"
      ? sharedTablesFolder(shm, run.path)
      : undefined;
    if (tables) requireWritable("data.shm_path", tables);
    return await runCompany(config, run, {
      tables,
      checkpoints: folder,
      snapshots,
      json: parsed.json,
      launch,
      token,
      port: launch.role === "alone" && parsed.given.has("port") ? parsed.port : 0,
      cpuFallback: !parsed.given.has("backend") && config.runtime.backend === "webgpu",
      profile: parsed.profiling,
    });
  },
};

/** Has the tuner look anew where the user asks for it, before any rank takes the device. */
async function retune(parsed: DefaultArguments, config: ResolvedConfig, launch: Launch): Promise<boolean> {
  if (!parsed.retune) return false;
  const { backend: name, nproc } = config.runtime;
  if (name !== "webgpu") {
    throw new ArgumentError(`--retune: the ${name} backend has one form of every kernel; leave it out`);
  }
  // A run without it needs neither tuner nor device in this process.
  const [{ tuneFor }, { deviceOptions, openBackend }] = await Promise.all([
    import("./tune.ts"),
    import("../backend/open.ts"),
  ]);
  using backend = await openBackend(name, deviceOptions(config.runtime));
  await tuneFor(config, { backend, world: launch.world ?? nproc, retune: true, seconds: retuneSeconds });
  return true;
}

interface CompanyOptions {
  /** Folder of checkpoints; absent where none are written. */
  readonly checkpoints: string | undefined;
  /** Folder of snapshots; absent where none are taken. */
  readonly snapshots?: string | undefined;
  /** Folder of tables that the ranks share; absent where they do not. */
  readonly tables?: string | undefined;
  readonly json: boolean;
  readonly launch: Launch;
  /** That all of the run's processes prove to each other that they know. */
  readonly token: string;
  /** For the control connections; 0 takes a free one. */
  readonly port: number;
  readonly cpuFallback: boolean;
  /** Leave a profile of a step in the run's folder, for each rank of this host. */
  readonly profile: boolean;
}

/**
 * Runs a company on this machine to its end and says how it went. Takes SIGINT and SIGTERM for the wish to save and stop.
 *
 * @returns the exit code
 */
async function runCompany(config: ResolvedConfig, run: RunFolder, options: CompanyOptions): Promise<number> {
  const { checkpoints, snapshots, tables, json, launch, token, port, cpuFallback, profile } = options;
  const debug = Deno.env.has("TROUPE_DEBUG");
  const { nproc, encrypt } = config.runtime, world = launch.world ?? nproc;
  const address = launch.host ?? "127.0.0.1";
  const runtime = createRuntime({
    log(actor, text) {
      // What the monitor says, it cannot show itself.
      if (actor === monitorRef.name) say(`troupe train: the monitor ${text}`);
      // Of ranks the supervisor tells, and how others crashed is told when they are there again, or the run ends by it.
      else if (!debug && (/\/rank-\d+(-\d+)?$/.test(actor) || text.startsWith("crashed: "))) return;
      else if (actor === companyName) monitorRef.send({ kind: "alert", text: `The ${text}` });
      else monitorRef.send({ kind: "notice", text });
    },
    ...(debug ? {} : { onDeadLetter: () => {} }),
  });
  const { monitor: monitorRef, supervisor: root } = membersOf(runtime);
  const people = alertPeople(config, (text) => monitorRef.send({ kind: "notice", text }));
  await using control = listenControl({
    hostname: address,
    port,
    token,
    silentMs: config.runtime.silence_timeout_s * 1000,
    onValue: (value) => heard(value as Said),
  });
  const blackBox = new BlackBox(), dump = (why: string) => writeBlackBox(run.blackBox, blackBox.content(why));
  let present = 0;
  /** @returns false for a rank that was given up: one whose own host is frozen may have heard nothing of it. */
  const heard = ({ late, records = [], ...beat }: Said): boolean => {
    if (beat.attempt < present) return false;
    if (records.length > 0) blackBox.add(beat.rank, beat.attempt, records);
    if (late === undefined) root.send({ kind: "beat", ...beat });
    else monitorRef.send({ kind: "alert", text: late });
    return true;
  };
  /** Who wants the run to stop. */
  const asked = { here: 0, elsewhere: false };
  await using hosts = launch.role === "root"
    ? openHosts({
      hostname: address,
      port: launch.port,
      token,
      encrypt,
      nproc,
      localRank: launch.localRank ?? 0,
      world,
      version: programVersion,
      record: comparable(config),
      onNotice: (text) => monitorRef.send({ kind: "alert", text }),
      onStarted: () => processes.changed(),
      onStop() {
        if (asked.here === 0 && !asked.elsewhere) root.send({ kind: "stop" });
        asked.elsewhere = true;
      },
    })
    : undefined;
  await using places = new Places({
    config,
    world,
    address,
    token,
    controlPort: control.port,
    write: [checkpoints ?? run.path, snapshots, tables, profile ? run.path : undefined].filter((path) =>
      path !== undefined
    ),
    profile,
    localRank: launch.localRank,
    hosts,
    onNotice: (text) => monitorRef.send({ kind: "notice", text }),
    onChange: () => processes.changed(),
  });
  using processes = keepProcessNote(run, () => places.living);
  const company = await startCompany(runtime, {
    monitor: {
      folder: run,
      totalSteps: config.data.total_steps,
      title: `${config.JOB_NAME}: loss`,
      json,
      tensorboard: config.enable_tb ? eventFiles(config, run) : undefined,
      onAlert: people.alert,
    },
    checkpoints: checkpointManager({
      folder: checkpoints ?? run.path,
      keepLast: config.ckpt.keep_last,
      snapshots,
      config: printResolved(config),
      layout: { world, ...config.parallel } as unknown as Json,
    }),
    supervisor: {
      config,
      runFolder: run.path,
      cpuFallback,
      muster(attempt) {
        present = attempt;
        return places.muster(attempt);
      },
      rank: (attempt, rank) => hosted(rankProtocol, () => places.start(attempt, rank), { startTimeoutMs: 120_000 }),
      kill: (rank) => places.kill(rank),
      onAccident: dump,
    },
  });

  using _asked = answerRequests(run, () => dump("troupe blackbox asked"));
  using _listening = onInterrupt((signal) => {
    // What schedulers send to all hosts at once is one wish, not two.
    if (++asked.here > 1 || !asked.elsewhere) root.send({ kind: "stop" });
    people.message(`Training on ${Deno.hostname()} received ${signal}`);
  });
  try {
    people.message(`Training on ${Deno.hostname()} begins`);
    const outcome = await company.run(), curve = await company.finish();
    const folders = [checkpoints, snapshots].filter((folder) => folder !== undefined);
    const words = outcome.outcome === "failed" ? outcome.reason! : lastWords(outcome, folders, config.ckpt.auto_resume);
    people.message(`Training on ${Deno.hostname()} ${outcome.outcome}: ${words}`);
    await people.settled();
    await runtime.stop();
    await hosts?.finish(outcome.outcome === "failed" ? 1 : 0, words);
    if (curve.drawn) say(`\n${curve.drawn}\n`);
    say(outcome.outcome === "failed" ? `troupe train: ${words}` : words);
    if (outcome.step > 0) say(`Records: ${run.metrics}${curve.file ? `, curve: ${curve.file}` : ""}`);
    return outcome.outcome === "failed" ? 1 : outcome.unsaved ? stoppedAtOnce : 0;
  } finally {
    await runtime.stop();
  }
}

/** `troupe blackbox` asks by a file: it may do so from anywhere that sees the run's folder. */
function answerRequests({ blackBoxRequest }: RunFolder, answer: () => void): Disposable {
  const timer = setInterval(() => {
    try {
      Deno.removeSync(blackBoxRequest);
    } catch {
      return; // nobody asks
    }
    answer();
  }, 500);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** The run's token, which the user gives to every host. */
function sharedToken(): string {
  const token = Deno.env.get(rankVariables.token);
  if (token !== undefined && token.length >= 16) return token;
  throw new ArgumentError(
    `${rankVariables.token} is ${
      token === undefined ? "not set" : "too short"
    }: hosts prove to each other that they know it; ` +
      `export ${rankVariables.token} with 16 characters or more, the same on every host ` +
      "(head -c 24 /dev/urandom | base64 makes one)",
  );
}

/** What of a record must be the same on all hosts, as text. */
const comparable = (config: ResolvedConfig): string =>
  printResolved({ ...config, runtime: { ...config.runtime, nproc: 1, tuning: null } });

/** A host of ranks that another host's root commands. @returns the exit code */
async function beMember(args: DefaultArguments, launch: Launch, token: string): Promise<number> {
  const stopping = new AbortController(), leaving = new AbortController();
  using _listening = onInterrupt(() => stopping.signal.aborted ? leaving.abort() : stopping.abort());
  const written = await writtenRecord(args, { onNotice: () => {} });
  const nproc = launch.firstRank === undefined ? args.nproc ?? 1 : 1, sockets = hostSockets(nproc, launch.localRank);
  requireRoomForRanks(nproc);
  const { code, text } = await joinHosts({
    root: { hostname: launch.host!, port: launch.port },
    token,
    encrypt: (written.runtime as { encrypt?: unknown } | undefined)?.encrypt === true,
    name: Deno.hostname(),
    nproc,
    ...(launch.firstRank === undefined ? {} : { firstRank: launch.firstRank }),
    ...(launch.localRank === undefined ? {} : { localRank: launch.localRank }),
    version: programVersion,
    // It is complete once the number of ranks is known.
    record: (worldSize) => comparable(resolveWritten(written, { onNotice: () => {}, worldSize })),
    start: (start, address) => startRankProcess({ ...start, token, address, sockets }),
    onNotice: say,
    timeoutMs: meetingMs,
    signal: stopping.signal,
    leave: leaving.signal,
  });
  say(code === 0 ? text : `troupe train: ${text}`);
  return code;
}

/** What a rank's communicator says: that the rank lives, or whom it waits for. */
interface Said {
  readonly rank: number;
  readonly attempt: number;
  readonly changes: number;
  readonly phase: string;
  readonly step: number;
  readonly late?: string;
  readonly records?: readonly FlightRecord[];
}

/** How long `--retune` may put off a run; `troupe tune` takes as long as it is told. */
const retuneSeconds = 120;

/** Exit code of a run that was told twice to stop: what shells give to one that SIGINT ended. */
const stoppedAtOnce = 130;

function lastWords({ outcome, step, unsaved }: Outcome, folders: readonly string[], resumes: boolean): string {
  const ended = outcome === "finished" ? "Finished" : "Stopped";
  const done = step > 0
    ? `${ended} after step ${step}.`
    : outcome === "finished"
    ? "Finished without a step: no gradient was finite, or data.skip_batches left out every batch."
    : "Stopped before the first step.";
  if (folders.length === 0) return `${done} Nothing was saved (ckpt.enable_save_ckpt is false).`;
  if (outcome === "finished") return `${done} Checkpoints: ${folders[0]}`;
  const command = `The same command${resumes ? "" : " with --set ckpt.auto_resume=true"}`;
  if (!unsaved && step > 0) return `${done} ${command} goes on from there.`;
  const saved = listCheckpoints(folders).find(({ status }) => status === "complete")?.step ?? 0;
  if (saved === 0) return `${done} Nothing was saved: the same command begins anew.`;
  const lost = saved < step ? ", as the last ones were not saved" : "";
  return `${done} ${command} goes on from step ${saved}${lost}.`;
}

/** Whom the record wants told. Sentences on what could not be delivered go where people look, while there is such a place. */
function alertPeople({ JOB_NAME, monitor: { alert } }: ResolvedConfig, notice: (text: string) => void): AlertSender {
  if (alert.enable_feishu_alert && alert.feishu_alert_address === null) {
    say("monitor.alert.enable_feishu_alert: true sends nothing, as monitor.alert.feishu_alert_address is missing");
  }
  return createAlertSender(alert, { title: alertTitle(JOB_NAME, (name) => Deno.env.get(name)), onError: notice });
}

/** TensorBoard's files as the record wants them, with what InternEvo writes of a run as text. */
function eventFiles(config: ResolvedConfig, run: RunFolder): TensorBoardSettings {
  const { tensorboard_folder, resume_tb_folder, monitor: { tensorboard } } = config;
  const folder = tensorboard_folder ?? run.tensorboards;
  const verbatim = (text: string) => text.trimEnd().split("\n").map((line) => `    ${line}`).join("\n");
  return {
    folder,
    resumeFrom: resume_tb_folder,
    queueMaxLength: tensorboard.queue_max_length,
    texts: {
      job_name: config.JOB_NAME,
      tensorboard_folder: folder,
      cmd: verbatim(["troupe", ...Deno.args].join(" ")),
      config: verbatim(printResolved(config)),
    },
  };
}
