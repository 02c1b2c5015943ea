/** When to save and what to load: InternEvo's rules as pure functions. Steps are counted from 1 once the first is done. */

export interface SavePolicy {
  /** @default {true} */
  readonly enableSaveCkpt?: boolean;
  /** Save every so many steps. @default never */
  readonly checkpointEvery?: number | null;
  /** Save a snapshot every so many steps, from 2 on. @default never */
  readonly ossSnapshotFreq?: number | null;
  readonly totalSteps: number;
}

export interface SaveDecision {
  /** A snapshot goes to its own folder, where only the newest two are kept. */
  readonly save: "none" | "normal" | "snapshot";
  /** Leave the training loop after this step. */
  readonly stop: boolean;
  /** A sentence for the log and the alerts, when the stop file asks for something. */
  readonly announce?: string;
}

/**
 * Decides after a step.
 *
 * @param options.stopAt the stop file's number (see `stop_file.ts`). @default {0}
 * @param options.force save whatever the step, as when the user interrupts. @default {false}
 */
export function decideSave(
  policy: SavePolicy,
  stepCount: number,
  options: { readonly stopAt?: number; readonly force?: boolean } = {},
): SaveDecision {
  const { enableSaveCkpt = true, totalSteps } = policy;
  const checkpointEvery = policy.checkpointEvery ?? Infinity;
  const ossSnapshotFreq = policy.ossSnapshotFreq ?? Infinity;
  const { stopAt = 0, force = false } = options;
  const target = Math.abs(stopAt);
  const due = stopAt !== 0 && stepCount === target;
  const stop = due && stopAt > 0;
  const every = (steps: number) => stepCount > 0 && stepCount % steps === 0;
  const wanted: SaveDecision["save"] = force || due || every(checkpointEvery) || stepCount === totalSteps
    ? "normal"
    : ossSnapshotFreq > 1 && every(ossSnapshotFreq)
    ? "snapshot"
    : "none";
  const save = enableSaveCkpt ? wanted : "none";
  if (stopAt === 0 || stepCount > target) return { save, stop };
  const saving = enableSaveCkpt ? "saves a checkpoint" : "saves nothing, as ckpt.enable_save_ckpt is false,";
  const announce = `The stop file asks: the run ${saving} and ${stopAt > 0 ? "stops" : "goes on"} at step ${target}`;
  return { save, stop, announce };
}

export const loadContents = ["model", "sampler", "optimizer", "scheduler"] as const;
export type LoadContent = typeof loadContents[number];

export interface LoadPath {
  /** A checkpoint folder, or a Hugging Face folder; may have a storage prefix. */
  readonly path: string;
  /** What to take of it. Without the optimizer, its state starts afresh from the weights. */
  readonly content: readonly LoadContent[];
  readonly ckptType: "internevo" | "hf";
}

/** What a run begins from. Without either, and where `resume` finds nothing: from fresh weights. */
export interface LoadPlan {
  /** Go on from the newest usable checkpoint of the run itself, where there is one; it goes before `load`. */
  readonly resume: boolean;
  readonly load?: LoadPath;
}

/** The `ckpt` section's fields on loading, as written. `null` counts as absent. */
export interface LoadOptions {
  readonly autoResume?: boolean | null;
  readonly loadCkptInfo?: unknown;
  /** Legacy. */
  readonly loadGivenCkpt?: boolean | null;
  /** Legacy. */
  readonly loadCkptFolder?: string | null;
  /** Legacy. */
  readonly loadModelOnlyFolder?: string | null;
  /** Legacy. @default {true} */
  readonly loadOptimizer?: boolean | null;
}

/** @throws {RangeError | TypeError} naming the field, the value and what would work */
export function planLoad(options: LoadOptions): LoadPlan {
  const { loadGivenCkpt, loadCkptInfo } = options;
  const resume = options.autoResume ?? (loadGivenCkpt === undefined || loadGivenCkpt === null || !loadGivenCkpt);
  const load = loadCkptInfo === undefined || loadCkptInfo === null
    ? legacyLoad(options)
    : parseLoadCkptInfo(loadCkptInfo);
  return { resume, ...(load ? { load } : {}) };
}

function legacyLoad(options: LoadOptions): LoadPath | undefined {
  const { loadCkptFolder, loadModelOnlyFolder, loadOptimizer } = options;
  if (loadModelOnlyFolder !== undefined && loadModelOnlyFolder !== null) {
    if (loadCkptFolder !== undefined && loadCkptFolder !== null) {
      throw new RangeError(
        `Cannot load both ckpt.load_model_only_folder (${loadModelOnlyFolder}) and ` +
          `ckpt.load_ckpt_folder (${loadCkptFolder}): leave one out`,
      );
    }
    return { path: loadModelOnlyFolder, content: ["model"], ckptType: "internevo" };
  }
  if (loadCkptFolder === undefined || loadCkptFolder === null) return undefined;
  return {
    path: loadCkptFolder,
    content: loadOptimizer === false ? ["model", "sampler"] : ["model", "sampler", "optimizer"],
    ckptType: "internevo",
  };
}

const REFUSED_TYPES: Readonly<Record<string, string>> = {
  llama: "original Llama shards: convert them to a Hugging Face folder and use hf",
  internlm_test: "not needed: internevo loads checkpoints of any layout",
  internlm2_test: "not needed: internevo loads checkpoints of any layout",
};

/** Checks `load_ckpt_info: {path, content, ckpt_type}`. */
export function parseLoadCkptInfo(info: unknown): LoadPath {
  const field = "ckpt.load_ckpt_info";
  if (typeof info !== "object" || info === null || Array.isArray(info)) {
    throw new TypeError(
      `Cannot read ${field}: it must be {path, content, ckpt_type}: current value is ${JSON.stringify(info)}`,
    );
  }
  const { path, content, ckpt_type: type, ...others } = info as Record<string, unknown>;
  const unknown = Object.keys(others);
  if (unknown.length > 0) {
    throw new RangeError(`Cannot read ${field}: ${unknown.join(", ")} unknown: it has path, content and ckpt_type`);
  }
  if (typeof path !== "string" || path === "") {
    throw new TypeError(
      `Cannot read ${field}.path: it must be the path of a folder: current value is ${JSON.stringify(path)}`,
    );
  }
  const list = typeof content === "string" ? [content] : content;
  const known: readonly unknown[] = [...loadContents, "all"];
  if (!Array.isArray(list) || list.length === 0 || !list.every((item) => known.includes(item))) {
    throw new RangeError(
      `Cannot read ${field}.content: it must be one or several of ${known.join(", ")}: ` +
        `current value is ${JSON.stringify(content)}`,
    );
  }
  const wanted = loadContents.filter((item) => list.includes(item) || list.includes("all"));
  if (!wanted.includes("model")) {
    throw new RangeError(
      `Cannot read ${field}.content: ${wanted.join(", ")} without model is not supported: ` +
        `add model, or set ckpt.load_ckpt_info to null`,
    );
  }
  if (type !== "internevo" && type !== "hf") {
    const reason = typeof type === "string" && Object.hasOwn(REFUSED_TYPES, type) ? ` (${REFUSED_TYPES[type]})` : "";
    throw new RangeError(
      `Cannot read ${field}.ckpt_type: it must be internevo or hf: current value is ${JSON.stringify(type)}${reason}`,
    );
  }
  if (type === "hf" && wanted.length > 1) {
    throw new RangeError(
      `Cannot read ${field}: a Hugging Face folder holds only the model: ` +
        `set content to [model]: current value is [${list.join(", ")}]`,
    );
  }
  return { path, content: wanted, ckptType: type };
}
