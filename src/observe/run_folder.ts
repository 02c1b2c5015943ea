/** Where a run leaves its files: `{root}/{job name}/{start time}/…`. */
import { dirname, resolve } from "node:path";

export interface RunFolderOptions {
  readonly jobName: string;
  readonly startTime: Date;
  /** @default {"RUN"} */
  readonly root?: string;
}

export interface RunFolder {
  readonly path: string;
  readonly logs: string;
  readonly tensorboards: string;
  readonly traces: string;
  /** JSON lines, one a step. */
  readonly metrics: string;
  /** The loss curve, drawn at the end. */
  readonly lossPlot: string;
  /** What the ranks did last before an accident, or when it was asked for; and the file that asks. */
  readonly blackBox: string;
  readonly blackBoxRequest: string;
}

/**
 * Names the places; makes nothing.
 *
 * @throws {RangeError} on a job name that is no plain folder name.
 *
 * @example
 * ```ts
 * import { runFolder } from "./run_folder.ts";
 * const { path } = runFolder({ jobName: "demo", startTime: new Date(2024, 0, 31, 9, 5, 7) });
 * console.assert(path === "RUN/demo/01-31-09.05.07");
 * ```
 */
export function runFolder(options: RunFolderOptions): RunFolder {
  const { jobName, startTime, root = "RUN" } = options;
  // deno-lint-ignore no-control-regex -- exactly those are meant
  if (!jobName || /[/\\\x00-\x1f]/.test(jobName) || jobName === "." || jobName === "..") {
    throw new RangeError(
      `Cannot name the run's folder: JOB_NAME must be a folder name without slashes, found ${JSON.stringify(jobName)}`,
    );
  }
  return runFolderAt(`${root}/${jobName}/${formatStartTime(startTime)}`);
}

/** The places within a run's folder, such as one that is gone on with. */
export function runFolderAt(path: string): RunFolder {
  return {
    path,
    logs: `${path}/logs`,
    tensorboards: `${path}/tensorboards`,
    traces: `${path}/traces`,
    metrics: `${path}/metrics.jsonl`,
    lossPlot: `${path}/loss.svg`,
    blackBox: `${path}/blackbox.json`,
    blackBoxRequest: `${path}/blackbox.ask`,
  };
}

/** `month-day-hour.minute.second`, two digits each, local time. */
function formatStartTime(date: Date): string {
  const two = (value: number) => String(value).padStart(2, "0");
  const day = `${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day}-${two(date.getHours())}.${two(date.getMinutes())}.${two(date.getSeconds())}`;
}

/** Makes the folders of a new run. Where others of its name began in the same second, a number follows its own. */
export function makeNewRunFolder(options: RunFolderOptions): RunFolder {
  const { path } = runFolder(options);
  Deno.mkdirSync(dirname(path), { recursive: true });
  for (let number = 1;; number++) {
    const run = runFolderAt(number === 1 ? path : `${path}-${number}`);
    try {
      Deno.mkdirSync(run.path);
    } catch (error) {
      if (error instanceof Deno.errors.AlreadyExists) continue;
      throw error;
    }
    makeRunFolder(run);
    return run;
  }
}

/** Makes the run's folders, parents included. */
export function makeRunFolder(folder: RunFolder): void {
  for (const path of [folder.logs, folder.tensorboards, folder.traces]) Deno.mkdirSync(path, { recursive: true });
}

/** Name of a rank's log file, and of its folder of event files. */
export function rankFileName(rank: { dp: number; tp: number; pp: number; main: boolean }): string {
  return `${rank.main ? "main_" : ""}dp=${rank.dp}_tp=${rank.tp}_pp=${rank.pp}`;
}

/**
 * Copies a folder's content into another, which is made where absent: a resumed run starts its event files with those of
 * the run before. A folder and itself: nothing to do.
 *
 * @throws {RangeError} on the root of the file system, and on a folder to be copied into itself; `Deno.errors.NotFound` where `from` does not exist.
 */
export function copyFolder(from: string, to: string): void {
  if (/^\/*$/.test(from)) throw new RangeError(`Cannot copy a folder: it must not be the root, found "${from}"`);
  const [source, target] = [resolve(from), resolve(to)];
  if (source === target) return;
  if (target.startsWith(`${source}/`)) throw new RangeError(`Cannot copy a folder into itself: ${to} is in ${from}`);
  const entries = [...Deno.readDirSync(from)];
  Deno.mkdirSync(to, { recursive: true });
  for (const entry of entries) {
    if (entry.isDirectory) copyFolder(`${from}/${entry.name}`, `${to}/${entry.name}`);
    else if (entry.isFile) Deno.copyFileSync(`${from}/${entry.name}`, `${to}/${entry.name}`);
  }
}
