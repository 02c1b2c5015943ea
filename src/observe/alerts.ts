/** Noticing that a run goes wrong, and telling people. */
import { formatLoss } from "./format.ts";

/** A step whose loss is more than this many times the loss before it is a spike. */
const LOSS_SPIKE_LIMIT = 1.5;

/** For so many steps after a spike others are counted, not told: a run whose loss is rough would tell nothing else. */
const quietSteps = 100;

/**
 * Compares each step's loss with the one before.
 *
 * @example
 * ```ts
 * import { LossSpikeDetector } from "./alerts.ts";
 * const spikes = new LossSpikeDetector();
 * console.assert(spikes.check(1, 2) === undefined && spikes.check(2, 3.1) !== undefined);
 * ```
 */
export class LossSpikeDetector {
  readonly #limit: number;
  #last: number | undefined;
  #toldAt = -Infinity;
  #untold = 0;

  constructor(limit: number = LOSS_SPIKE_LIMIT) {
    this.#limit = limit;
  }

  /** The alert's text, or undefined where all is well. A loss that is not a number is told, and not compared with. */
  check(step: number, loss: number): string | undefined {
    const last = this.#last;
    if (!Number.isFinite(loss)) return `Loss is ${loss} at step ${step}`;
    this.#last = loss;
    if (last === undefined || loss <= this.#limit * last) return undefined;
    if (step <= this.#toldAt + quietSteps) {
      this.#untold++;
      return undefined;
    }
    const [now, before] = [formatLoss(loss), formatLoss(last)], since = this.#toldAt, more = this.#untold;
    [this.#toldAt, this.#untold] = [step, 0];
    return `Loss spike at step ${step}: ${now}, more than ${this.#limit} times the ${before} of the step before` +
      (more > 0 ? ` (and ${more} more since step ${since})` : "");
  }
}

/**
 * Notices that no step was recorded between two checks. Checks are made by whoever owns the timer, every five minutes in
 * InternEvo; a step slower than that would be taken for a stuck run, so `patienceSeconds` bounds it from below.
 *
 * @example
 * ```ts
 * import { StuckDetector } from "./alerts.ts";
 * let now = 0;
 * const stuck = new StuckDetector({ now: () => now, patienceSeconds: 300 });
 * stuck.active(1);
 * now = 301_000;
 * console.assert(stuck.check()?.includes("step 1"));
 * ```
 */
export class StuckDetector {
  readonly #now: () => number;
  readonly #patience: number;
  #last: { step: number; at: number } | undefined;
  #told = false;

  /** `now` in milliseconds. */
  constructor(options: { readonly now?: () => number; readonly patienceSeconds?: number } = {}) {
    this.#now = options.now ?? Date.now;
    this.#patience = (options.patienceSeconds ?? 300) * 1000;
  }

  /** A step was recorded. */
  active(step: number): void {
    this.#last = { step, at: this.#now() };
    this.#told = false;
  }

  /** The alert's text, once for each time the run gets stuck. Before the first step nothing is expected. */
  check(): string | undefined {
    if (this.#last === undefined || this.#told) return undefined;
    const silent = this.#now() - this.#last.at;
    if (silent < this.#patience) return undefined;
    this.#told = true;
    return `Training may be stuck: no step for ${Math.round(silent / 1000)} s, the last was step ${this.#last.step}`;
  }
}

/** `{job id}_{job name}`; the id is what the cluster calls the job, "none" outside of one. */
export function alertTitle(jobName: string, env: (name: string) => string | undefined): string {
  const id = env("SLURM_JOB_ID") ?? env("KUBERNETES_POD_NAME")?.split("-")[0] ?? env("MLP_TASK_ID") ?? "none";
  return `${id}_${jobName}`;
}

export interface FeishuMessage {
  /** The webhook (`monitor.alert.feishu_alert_address`). */
  readonly address: string;
  readonly title: string;
  readonly text: string;
  /** @default {30_000} */
  readonly timeoutMilliseconds?: number;
  /** Milliseconds since 1970. @default {Date.now} */
  readonly now?: () => number;
  /** Told when the message could not be delivered. @default {console.error} */
  readonly onError?: (message: string) => void;
}

/** Posts a message to a Feishu group. A failure is told, never raised: an alert must not end the run. */
export async function sendFeishuMessage(message: FeishuMessage): Promise<boolean> {
  const { address, title, text, timeoutMilliseconds = 30_000, now = Date.now } = message;
  const onError = message.onError ?? ((reason: string) => console.error(reason));
  const body = {
    timestamp: Math.floor(now() / 1000),
    msg_type: "post",
    content: { post: { zh_cn: { title, content: [[{ tag: "text", text }]] } } },
  };
  try {
    const response = await fetch(address, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(timeoutMilliseconds),
    });
    const answer = await response.text();
    if (response.ok) return true;
    onError(`Cannot send the alert "${title}": the server answered ${response.status} ${answer.slice(0, 200)}`);
  } catch (error) {
    onError(`Cannot send the alert "${title}": ${(error as Error).message}`);
  }
  return false;
}

/**
 * Appends `text` to the file unless it is there already, under the file's lock, so that of many ranks failing alike one
 * sends the alert. True for that one.
 */
export function claimAlert(path: string, text: string): boolean {
  using file = Deno.openSync(path, { read: true, write: true, create: true });
  file.lockSync(true);
  try {
    const known = new Uint8Array(file.statSync().size);
    for (let read = 0; read < known.length;) {
      const count = file.readSync(known.subarray(read));
      if (count === null) break;
      read += count;
    }
    // Whole lines: "step 1" is not known because "step 12" is.
    if (`\n${new TextDecoder().decode(known)}`.includes(`\n${text}\n`)) return false;
    const added = new TextEncoder().encode(text + "\n");
    for (let written = 0; written < added.length;) written += file.writeSync(added.subarray(written));
    return true;
  } finally {
    file.unlockSync();
  }
}
