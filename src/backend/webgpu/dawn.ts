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

let wrapped = false;
/**
 * Of read-backs: when the one under way began, how long one is thought to take and how long the last one took, in
 * milliseconds, and how many polls it has had at once and by timer.
 */
const wait = { begun: -Infinity, expected: 0, last: 0, polls: 0, timed: 0 };

/** Told by read-backs, so that polls come when an answer may. */
export function beginWait(): void {
  wait.begun = performance.now();
  wait.polls = wait.timed = 0;
}
export function endWait(): void {
  const took = performance.now() - wait.begun;
  wait.expected = expectedNext(took, wait.timed, wait.last);
  wait.last = took;
}

/**
 * How long the next read-back is thought to take: as long as the quicker of the last two, so that one that was slow, behind a
 * compilation or on a busy machine, delays none after it. Where the first poll by timer found the answer there already, it
 * may have been there long before, and a poll that waited for it as long again would find it late for ever.
 */
export const expectedNext = (took: number, timedPolls: number, before: number): number =>
  Math.min(timedPolls === 1 ? took / 2 : took, before);

/**
 * Dawn polls by `setImmediate` while an answer is due, and each poll leaks some 70 bytes in Deno: 4 MB a minute at one a
 * millisecond. So a poll comes when four fifths of the time that a read-back is thought to take have passed, then every
 * millisecond; a few come at once where answers are quick.
 */
function pollFromTimer(): void {
  if (wrapped) return;
  wrapped = true;
  const immediate = globalThis.setImmediate;
  const polling = (...[callback, ...args]: Parameters<typeof setImmediate>) => {
    if (wait.expected < 2 && wait.polls++ < 20) return immediate(callback, ...args);
    const left = 0.8 * wait.expected - (performance.now() - wait.begun);
    wait.timed++;
    return setTimeout(callback, Math.max(1, left), ...args) as unknown as ReturnType<typeof setImmediate>;
  };
  globalThis.setImmediate = polling as typeof setImmediate;
}
