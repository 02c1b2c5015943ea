/**
 * Dawn, the WebGPU of Chromium, as the npm package `webgpu`: a native add-on that shows matrix units where Deno's own
 * WebGPU hides them. It is never part of the default set-up (the package holds every platform's binary): the user adds
 * it, and a task of its own has the permission to load it.
 */
import { join } from "node:path";
import { pathToFileURL } from "node:url";

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

/**
 * When to ask Dawn for the answer of a read-back, by how long the ones before took. Each question costs memory for ever
 * (`pollFromTimer`), so one that comes in vain is dear, and one that comes late delays a step.
 */
export class PollSchedule {
  #begun = -Infinity;
  #polls = 0;
  #expected = 0;
  /** What the last one took, by the same measure. */
  #last = 0;
  /** How many in a row had their answer at the first poll, perhaps long before it. */
  #atFirst = 0;

  /** A read-back begins at this time, in milliseconds. */
  begin(now: number): void {
    this.#begun = now;
    this.#polls = 0;
  }

  /** How many milliseconds from now the next poll is due: at first a little before the answer, then at a twentieth more. */
  next(now: number): number {
    const elapsed = now - this.#begun, step = (time: number) => Math.min(1, Math.max(0.05, time / 20));
    if (this.#polls++ > 0) return step(elapsed);
    return Math.max(0, this.#expected - step(this.#expected) - elapsed);
  }

  /**
   * The answer is there. The next one is expected as the quicker of the last two, so that one that was slow, behind a
   * compilation or on a busy machine, delays none after it. Answers that are there at the first poll are looked for sooner
   * and sooner.
   */
  end(now: number): void {
    this.#atFirst = this.#polls <= 1 ? this.#atFirst + 1 : 0;
    const took = (now - this.#begun) * (1 - Math.min(0.5, this.#atFirst && 0.02 * 2 ** this.#atFirst));
    this.#expected = Math.min(took, this.#last);
    this.#last = took;
  }
}

const schedule = new PollSchedule();
/** Told by read-backs, so that polls come when an answer may. */
export const beginWait = (): void => schedule.begin(performance.now());
export const endWait = (): void => schedule.end(performance.now());

let wrapped = false;
/**
 * Dawn polls by `setImmediate` while an answer is due, each time with a function made for it, of which Deno never gives 32
 * bytes back: 2 MB a minute at one a millisecond. So a poll comes when an answer may. Until then the thread is given
 * up, for less than a millisecond by turns of the event loop, as a timer is no finer than that.
 */
function pollFromTimer(): void {
  if (wrapped) return;
  wrapped = true;
  const immediate = globalThis.setImmediate;
  const polling = (...[callback, ...args]: Parameters<typeof setImmediate>) => {
    const begun = performance.now(), due = begun + schedule.next(begun);
    const turn = (): unknown => performance.now() < due ? wait() : callback(...args);
    const wait = () => {
      const left = due - performance.now();
      return left < 1 ? immediate(turn) : setTimeout(turn, Math.floor(left));
    };
    return wait();
  };
  globalThis.setImmediate = polling as typeof setImmediate;
}
