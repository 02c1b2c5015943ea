/**
 * Dawn, the WebGPU of Chromium, as the npm package `webgpu`: a native add-on that shows matrix units where Deno's own
 * WebGPU hides them. It is never part of the default set-up (the package holds every platform's binary): the user adds
 * it, and a task of its own has the permission to load it.
 */
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { pinLibraries } from "./pin.ts";

/** The npm package and the version that Troupe is tested with. */
export const dawnPackage = "webgpu@0.6.2";

/** Names the package's folder, where it lies elsewhere than `troupe doctor --add-dawn` puts it. */
const folderVariable = "TROUPE_DAWN";

/** What to type so that `runtime.webgpu: dawn` works. */
export const dawnAdvice = "type: ./troupe doctor --add-dawn, and start runs that use it with: ./troupe dawn train …";

/** Folder that `--add-dawn` installs into, outside of any project; `undefined` where no folder of the user is known. */
export function dawnCache(env: (name: string) => string | undefined = Deno.env.get): string | undefined {
  const cache = env("XDG_CACHE_HOME") || (env("HOME") && join(env("HOME")!, ".cache"));
  return cache ? join(cache, "troupe", `dawn-${dawnPackage.split("@")[1]}`) : undefined;
}

/** Where the package lies, or would. */
export function dawnFolder(env: (name: string) => string | undefined = Deno.env.get): string | undefined {
  const cache = dawnCache(env);
  return env(folderVariable) || (cache && join(cache, "node_modules", "webgpu"));
}

/** The package's folder if it is there. */
export function findDawn(): string | undefined {
  const folder = dawnFolder();
  try {
    return folder && Deno.statSync(join(folder, "index.js")).isFile ? folder : undefined;
  } catch {
    return undefined;
  }
}

interface DawnModule {
  create(flags: string[]): GPU;
  readonly globals: Record<string, unknown>;
}

export interface DawnOptions {
  /** Every index of a kernel is held within its array, by the device. @default {true} */
  readonly boundsChecks?: boolean;
  /** Beside Troupe's own, e.g. `backend=null`: no device, yet every text is compiled. */
  readonly more?: readonly string[];
}

/**
 * What Dawn is told: `allow_unsafe_apis` shows the experimental matrix units, `vulkan_enable_f16_on_nvidia` the `f16` that
 * it hides there by default; `disable_robustness` leaves out the checks of indices that it adds to every text; unquantised
 * timestamps are for profiles.
 */
const dawnFlags = ({ boundsChecks = true, more = [] }: DawnOptions): string[] => [
  `enable-dawn-features=${
    ["allow_unsafe_apis", "vulkan_enable_f16_on_nvidia", ...(boundsChecks ? [] : ["disable_robustness"])].join()
  }`,
  "disable-dawn-features=timestamp_quantization",
  ...more,
];

/**
 * Entry points by their options, held for the life of the process: Dawn's poller keeps a raw pointer to what `create()`
 * gives, and once that is collected the next poll crashes.
 */
const held = new Map<string, Promise<GPU>>();

/**
 * Dawn's entry point, loaded at the first call.
 *
 * @throws {Error} when the package is not there or may not be loaded, saying what to type
 */
export function loadDawn(options: DawnOptions = {}): Promise<GPU> {
  const flags = dawnFlags(options), key = flags.join(" ");
  let gpu = held.get(key);
  if (gpu === undefined) {
    gpu = load(flags);
    held.set(key, gpu);
    gpu.catch(() => held.delete(key));
  }
  return gpu;
}

async function load(flags: string[]): Promise<GPU> {
  const folder = findDawn();
  if (folder === undefined) {
    const named = Deno.env.get(folderVariable);
    const where = named ? `${folderVariable} names ${named}, which has no index.js` : "it has not been added";
    throw new Error(
      `Cannot use runtime.webgpu: dawn: the npm package ${dawnPackage} is not there (${where}); ${dawnAdvice}`,
    );
  }
  if (Deno.permissions.querySync({ name: "ffi" }).state !== "granted") {
    throw new Error(
      "Cannot use runtime.webgpu: dawn: this task may not load native code; start it as ./troupe dawn train …",
    );
  }
  pollFromTimer();
  const { create, globals } = await import(pathToFileURL(join(folder, "index.js")).href) as DawnModule;
  // Deno has the flags, and classes of its own; what it lacks is added.
  for (const [name, value] of Object.entries(globals)) if (!(name in globalThis)) Reflect.set(globalThis, name, value);
  return create(flags);
}

/**
 * Has a process that may use Dawn end as soon as nothing is left to do, without the runtime's taking down of what native
 * code made: buffers, devices, and last Dawn's own entry point, with which the system unloads the GPU's driver while threads
 * that have called it are still there. What a process holds of a GPU is given back by the kernel's driver anyway.
 */
export function endWithoutTeardown(): void {
  globalThis.addEventListener("unload", () => Deno.exit());
}

/** After so many read-backs of one kind in a row they are taken for those of a training loop. */
const loopAfter = 8;

/**
 * When to ask Dawn for the answer of a read-back, by how long those of its kind took before. Each question costs memory for
 * ever (`pollFromTimer`), so one that comes in vain is dear, and one that comes late delays a step.
 *
 * At first the question comes a little before the answer may be there. In a training loop each answer takes about as long:
 * there it comes when four of five answers are there. That time falls by a thousandth after an answer that was there, rises
 * by a hundredth after one that was not, and by more and more while it goes the same way.
 */
export class PollSchedule {
  #begun = -Infinity;
  #polls = 0;
  #expected = 0;
  /** What the last one took, by the same measure. */
  #last = 0;
  /** How many in a row had their answer at the first poll, perhaps long before it; and how many had not. */
  #atFirst = 0;
  #later = 0;
  #inLoop = false;
  #inRow = 0;

  /** A read-back begins at this time, in milliseconds; `again` tells that the one before was of this kind, too. */
  begin(now: number, again = true): void {
    this.#inRow = again ? this.#inRow + 1 : 0;
    if (!again) this.#inLoop = false;
    this.#begun = now;
    this.#polls = 0;
  }

  /** How many milliseconds from now the next poll is due. */
  next(now: number): number {
    const elapsed = now - this.#begun, first = this.#polls++ === 0;
    if (this.#inLoop) {
      if (first) return Math.max(0, this.#expected - elapsed);
      return Math.min(Math.max(1, elapsed / 100), Math.max(0.05, this.#expected / 100) * 2 ** (this.#polls - 2));
    }
    const step = (time: number) => Math.min(1, Math.max(0.05, time / 20));
    return first ? Math.max(0, this.#expected - step(this.#expected) - elapsed) : step(elapsed);
  }

  /**
   * The answer is there. Outside of a loop the next one is expected as the quicker of the last two, so that one that was
   * slow, behind a compilation or on a busy machine, delays none after it. Answers that are there at the first poll are
   * looked for sooner and sooner.
   */
  end(now: number): void {
    const took = now - this.#begun;
    if (this.#polls <= 1) [this.#atFirst, this.#later] = [this.#atFirst + 1, 0];
    else [this.#atFirst, this.#later] = [0, this.#later + 1];
    if (this.#inLoop) {
      const more = Math.max(0.05, 0.01 * this.#expected) * 1.5 ** (this.#later - 1);
      const less = took * Math.min(0.5, 0.001 * 1.5 ** (this.#atFirst - 1));
      this.#expected = this.#later > 0 ? Math.min(took, this.#expected + more) : took - less;
      this.#last = this.#expected;
    } else {
      const sooner = took * (1 - Math.min(0.5, this.#atFirst && 0.02 * 2 ** this.#atFirst));
      this.#expected = Math.min(sooner, this.#last);
      this.#last = sooner;
      // Not while it is far from the answers.
      this.#inLoop = this.#inRow >= loopAfter && this.#later > 0;
    }
  }
}

/** By the bytes of a read-back, which tell one kind from the other. */
const schedules = new Map<number, PollSchedule>();
const mostSchedules = 256;
let schedule = new PollSchedule();

/** Told by read-backs, so that polls come when an answer may. */
export function beginWait(bytes: number): void {
  const known = schedules.get(bytes), before = schedule;
  schedule = known ?? new PollSchedule();
  if (known === undefined) {
    if (schedules.size === mostSchedules) schedules.clear();
    schedules.set(bytes, schedule);
  }
  schedule.begin(performance.now(), schedule === before);
}
export const endWait = (): void => schedule.end(performance.now());

let keeping = false;
/**
 * Has the thread, such as a test file's or a worker's, end in peace, now that a device is open. Dawn gives up its entry
 * point with the thread, and with the last one the system would unload the GPU's driver while threads that have called it
 * are still there. What they would tell it when they end then leads nowhere: the driver stays loaded.
 */
export function keepDriver(): void {
  if (keeping) return;
  keeping = true;
  pinLibraries();
  globalThis.addEventListener("unload", () => {
    settleAll();
    pinLibraries(); // with what the driver has loaded since
  });
}

/** Polls that Dawn has asked for and that have not come. */
const asked = new Set<() => void>();

/**
 * Has Dawn settle its promises as far as it can now, such as those of a device just destroyed: one that is pending when the
 * objects of its thread are taken down makes Dawn abort the process.
 */
export function settle(): void {
  for (const poll of [...asked]) poll();
}

/** Settles all of the thread's, before it ends: work on the device and compilations take what they take, to a limit. */
function settleAll(): void {
  const end = performance.now() + mostSettleSeconds * 1000, nobody = new Int32Array(new SharedArrayBuffer(4));
  for (; asked.size > 0 && performance.now() < end; Atomics.wait(nobody, 0, 0, 1)) settle();
}
const mostSettleSeconds = 60;

let wrapped = false;
/**
 * Dawn polls by `setImmediate` while an answer is due, each time with a function made for it, of which Deno never gives 32
 * bytes back: 2 MB a minute at one a millisecond. So a poll comes when an answer may. Until then the thread is given
 * up, for less than a millisecond by turns of the event loop, as a timer is no finer than that.
 */
function pollFromTimer(): void {
  if (wrapped) return;
  wrapped = true;
  const { setImmediate: immediate, clearImmediate } = globalThis;
  const isNative = (call: unknown) => Function.prototype.toString.call(call).endsWith("{ [native code] }");
  const polling = (...[callback, ...args]: Parameters<typeof setImmediate>) => {
    if (!isNative(callback)) return immediate(callback, ...args); // not Dawn's
    const begun = performance.now(), due = begun + schedule.next(begun);
    let cancel: () => void;
    const poll = () => {
      asked.delete(poll);
      cancel();
      callback(...args);
    };
    const turn = () => performance.now() < due ? wait() : poll();
    const wait = () => {
      const left = due - performance.now();
      if (left < 1) {
        const next = immediate(turn);
        cancel = () => clearImmediate(next);
      } else {
        const timer = setTimeout(turn, Math.floor(left));
        cancel = () => clearTimeout(timer);
      }
    };
    asked.add(poll);
    wait();
  };
  globalThis.setImmediate = polling as typeof setImmediate;
}
