/** `troupe doctor`: what this machine has for training, what is missing, and what to type. */
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import manifest from "../../deno.json" with { type: "json" };
import { dawnAdvice, findDawn } from "../backend/webgpu/dawn.ts";
import { type AdapterReport, probeAdapter } from "../backend/webgpu/doctor.ts";
import { defaultProvider } from "../backend/webgpu/provider.ts";
import { formatBytes } from "../observe/format.ts";
import { listGpus, variablesOfRanks } from "./gpus.ts";
import { createParser, type ParsedArguments } from "./parser.ts";
import { type ProgramForm, programForm } from "./self.ts";
import type { Verb } from "./verb.ts";

/** The oldest Deno that will do. The launcher fetches this one. */
export const neededDeno = "2.9.6";

export interface Finding {
  /** `note` is worth knowing, `bad` prevents training. */
  readonly grade: "ok" | "note" | "bad";
  readonly what: string;
  /** What to type or change. */
  readonly advice?: string;
}

export interface DoctorReport {
  /** Whether training works, on whatever backend. */
  readonly ok: boolean;
  /** The backend that training would take by itself. */
  readonly backend: "webgpu" | "cpu";
  readonly troupe: { readonly version: string; readonly form: ProgramForm };
  readonly deno: { readonly version: string; readonly needed: string; readonly path: string };
  readonly system: {
    readonly os: string;
    readonly arch: string;
    readonly cores: number;
    /** Bytes; absent where Deno may not ask. */
    readonly memory?: { readonly total: number; readonly available: number };
  };
  readonly adapter: AdapterReport;
  readonly driver: DriverReport;
  readonly runFolder: { readonly path: string; readonly writable: boolean };
  readonly findings: readonly Finding[];
}

export interface DriverReport {
  /** What WebGPU runs on; `undefined` where no adapter answers. OpenGL is a guess: it is what has no subgroups. */
  readonly api?: "Vulkan" | "OpenGL" | "Metal" | "Direct3D 12";
  /** The loader that finds Vulkan drivers is installed. */
  readonly vulkanLoader: boolean;
  /** Files by which Vulkan drivers announce themselves, whether or not they find their device. */
  readonly vulkanManifests: readonly string[];
  /** Version of NVIDIA's kernel driver. */
  readonly nvidia?: string;
  /** Places of GPUs on the bus, and whether Mesa's layer is there that can choose among them. */
  readonly gpus: readonly string[];
  readonly selectLayer: boolean;
}

export interface DoctorOptions {
  /** One line of JSON rather than text for people. @default {false} */
  readonly json?: boolean;
  /** Where runs would leave their files. @default {"RUN"} */
  readonly runDir?: string;
  /** @default {console.log} */
  readonly print?: (line: string) => void;
}

/** Looks at the machine and prints what it found. Returns the exit code: 0 where training works, on the CPU too. */
export async function doctor({ json = false, runDir = "RUN", print = console.log }: DoctorOptions = {}): Promise<
  number
> {
  const report = examine(await probeAdapter(defaultProvider()), runDir);
  if (json) print(JSON.stringify(report));
  else for (const line of formatReport(report)) print(line);
  return report.ok ? 0 : 1;
}

/** Everything but the adapter, which takes a device to look at, and the verdict. */
export function examine(adapter: AdapterReport, runDir: string, gpus: readonly string[] = listGpus()): DoctorReport {
  const deno = { version: Deno.version.deno, needed: neededDeno, path: Deno.execPath() };
  const driver = findDriver(adapter, gpus);
  const denied = tryWriting(runDir);
  const findings: Finding[] = [
    atLeast(deno.version, neededDeno) ? { grade: "ok", what: `Deno ${deno.version}` } : {
      grade: "bad",
      what: `Deno ${deno.version} is too old: ${neededDeno} or newer is needed`,
      advice: "start with ./troupe, which fetches it, or type: deno upgrade",
    },
    ...adapterFindings(adapter, driver),
    ...severalGpus(driver),
    ...dawnFindings(adapter),
    denied ? { grade: "bad", ...denied } : { grade: "ok", what: `Runs can be written to ${resolve(runDir)}` },
  ];
  return {
    ok: findings.every(({ grade }) => grade !== "bad"),
    backend: adapter.found ? "webgpu" : "cpu",
    troupe: { version: manifest.version, form: programForm },
    deno,
    system: { os: Deno.build.os, arch: Deno.build.arch, cores: navigator.hardwareConcurrency, ...memory() },
    adapter,
    driver,
    runFolder: { path: resolve(runDir), writable: !denied },
    findings,
  };
}

function adapterFindings(adapter: AdapterReport, driver: DriverReport): Finding[] {
  const hidden: Finding[] = driver.nvidia && !(adapter.found && !adapter.software)
    ? [{
      grade: "note",
      what: `An NVIDIA driver ${driver.nvidia} is loaded, but its GPU does not answer WebGPU`,
      advice: "install its Vulkan library (Debian: nvidia-vulkan-icd, Ubuntu: libnvidia-gl); start a container with " +
        "NVIDIA_DRIVER_CAPABILITIES=all",
    }]
    : [];
  if (!adapter.found) {
    return [{
      grade: "note",
      what: `WebGPU does not work (${adapter.reason}); training runs on the CPU backend, slowly`,
      advice: adapter.advice,
    }, ...hidden];
  }
  const { description, software } = adapter;
  const what = `WebGPU works on ${description}`;
  const found: Finding = software
    ? { grade: "note", what: `${what}: software rendering, correct but slow; a GPU needs its maker's Vulkan driver` }
    : { grade: "ok", what };
  if (driver.api !== "OpenGL") return [found, ...hidden];
  const advice = Deno.build.os === "linux"
    ? { advice: "apt-get install --yes libvulkan1 mesa-vulkan-drivers, or the GPU maker's Vulkan driver" }
    : {};
  return [found, {
    grade: "note",
    what: "That seems to be through OpenGL, without subgroups; Vulkan would be faster",
    ...advice,
  }, ...hidden];
}

/** How ranks get one each of several GPUs. */
function severalGpus({ gpus, selectLayer }: DriverReport): Finding[] {
  if (gpus.length < 2) return [];
  const layer = selectLayer ? "" : "; it takes Mesa's device-select layer (Debian, Ubuntu: mesa-vulkan-drivers)";
  return [{
    grade: "note",
    what:
      `There are ${gpus.length} GPUs; the ranks of --nproc share the first, unless each is told which one is its own`,
    advice: `export ${variablesOfRanks(gpus).join(" ")}${layer}; see docs/ranks.md`,
  }];
}

/** Whether the other WebGPU would reach more of the GPU. */
function dawnFindings(adapter: AdapterReport): Finding[] {
  if (!adapter.found || adapter.software) return [];
  if (adapter.provider === "dawn") {
    return [
      adapter.features.includes("chromium-experimental-subgroup-matrix")
        ? { grade: "ok", what: "Dawn shows the GPU's matrix units: float16 and bfloat16 train several times as fast" }
        : { grade: "note", what: "Dawn shows no matrix units of this GPU: Deno's own WebGPU does as well" },
    ];
  }
  const folder = findDawn();
  return [
    folder === undefined
      ? {
        grade: "note",
        what: "Deno's own WebGPU does not reach the matrix units that most GPUs have; Dawn, an npm package, does",
        advice: `for float16 and bfloat16 ${dawnAdvice}`,
      }
      : { grade: "ok", what: `Dawn is at ${folder}`, advice: "see what it reaches: ./troupe dawn doctor" },
  ];
}

function findDriver(adapter: AdapterReport, gpus: readonly string[]): DriverReport {
  const nvidia = readText("/proc/driver/nvidia/version")?.match(/Kernel Module.*?\s(\d+\.[\d.]+)/)?.[1];
  return {
    ...(adapter.found ? { api: apiOf(adapter.features) } : {}),
    vulkanLoader: hasVulkanLoader(),
    vulkanManifests: vulkanManifests(),
    gpus,
    selectLayer: vulkanFiles("implicit_layer.d").some((path) => path.includes("device_select")),
    ...(nvidia ? { nvidia } : {}),
  };
}

function apiOf(features: readonly string[]): NonNullable<DriverReport["api"]> {
  if (Deno.build.os === "darwin") return "Metal";
  if (Deno.build.os === "windows") return "Direct3D 12";
  return features.includes("subgroups") ? "Vulkan" : "OpenGL";
}

/** What the Vulkan loader reads on Linux, unless the environment names files. */
function vulkanManifests(): string[] {
  const named = Deno.env.get("VK_DRIVER_FILES") || Deno.env.get("VK_ICD_FILENAMES");
  return named ? named.split(":").filter((path) => existsSync(path)) : vulkanFiles("icd.d");
}

/** Files of one kind where the Vulkan loader looks for them. */
function vulkanFiles(kind: "icd.d" | "implicit_layer.d"): string[] {
  const home = Deno.env.get("HOME");
  const data = (Deno.env.get("XDG_DATA_DIRS") || "/usr/local/share:/usr/share").split(":");
  const roots = ["/etc", "/usr/local/etc", ...(home ? [`${home}/.local/share`] : []), ...data];
  return [...new Set(roots)].flatMap((root) => {
    const folder = join(root, "vulkan", kind);
    return list(folder).filter((name) => name.endsWith(".json")).sort().map((name) => join(folder, name));
  });
}

function hasVulkanLoader(): boolean {
  const given = (Deno.env.get("LD_LIBRARY_PATH") ?? "").split(":").filter(Boolean);
  const roots = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64"];
  const triples = list("/usr/lib").filter((name) => name.endsWith("-linux-gnu")).map((name) => `/usr/lib/${name}`);
  return [...given, ...roots, ...triples].some((folder) => existsSync(join(folder, "libvulkan.so.1")));
}

/** What keeps files from being written to the folder, or to the nearest one above it that is there. */
function tryWriting(folder: string): { what: string; advice: string } | undefined {
  let place = resolve(folder);
  while (!existsSync(place) && place !== dirname(place)) place = dirname(place);
  try {
    Deno.removeSync(Deno.makeTempFileSync({ dir: place, prefix: ".troupe-doctor-" }));
  } catch (error) {
    const what = `Runs cannot be written to ${resolve(folder)}: `;
    if (error instanceof Deno.errors.NotCapable) {
      return { what: what + "Deno was not allowed to", advice: `set TROUPE_WRITE=,${place} or stand in that folder` };
    }
    const advice = `choose another folder with --set runtime.run_dir=FOLDER, or make room or give rights there`;
    return { what: what + (error as Error).message, advice };
  }
  return undefined;
}

function memory(): { memory?: { total: number; available: number } } {
  try {
    const { total, available } = Deno.systemMemoryInfo();
    return { memory: { total, available } };
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) return {};
    throw error;
  }
}

/** Limits that decide what a kernel may do; the others are in the JSON. */
const shownLimits = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupsPerDimension",
  "maxStorageBuffersPerShaderStage",
] as const;

/** The report for people: facts first, then what was found good, notable or missing. */
export function formatReport(report: DoctorReport): string[] {
  const { troupe, deno, system, adapter, driver } = report;
  const facts: [string, string][] = [
    ["troupe", `${troupe.version} (${troupe.form})`],
    ["deno", `${deno.version} at ${deno.path}`],
    ["system", `${system.os} ${system.arch}, ${system.cores} cores`],
  ];
  if (system.memory) {
    facts.push(["memory", `${formatBytes(system.memory.total)}, ${formatBytes(system.memory.available)} available`]);
  }
  if (adapter.found) {
    facts.push(["adapter", `${adapter.description} (${adapter.software ? "software" : "GPU"})`]);
    facts.push(["webgpu", adapter.provider === "dawn" ? "Dawn" : "Deno's own"]);
    const checks = adapter.provider === "dawn"
      ? "left out, unless runtime.bounds_checks or plugins ask for them"
      : "always";
    facts.push(["checks", `of indices by the device: ${checks}`]);
    facts.push(["driver", driver.api ?? "unknown"]);
    facts.push(["subgroups", adapter.subgroupSize > 0 ? `${adapter.subgroupSize} lanes` : "none"]);
    facts.push(["features", adapter.features.join(", ") || "none"]);
    for (const name of shownLimits) facts.push(["limit", `${name} ${adapter.limits[name]}`]);
  } else facts.push(["adapter", "none"]);
  if (system.os === "linux") {
    facts.push(["vulkan", driver.vulkanLoader ? "loader found" : "no loader (libvulkan.so.1)"]);
    facts.push(["vulkan", driver.vulkanManifests.join(", ") || "no driver announces itself"]);
  }
  if (driver.nvidia) facts.push(["nvidia", `kernel driver ${driver.nvidia}`]);
  return [
    ...facts.map(([name, text]) => `${name.padEnd(10)} ${text}`),
    "",
    ...report.findings.flatMap(({ grade, what, advice }) => [
      `${grade.padEnd(5)}${what}`,
      ...(advice ? [`     -> ${advice}`] : []),
    ]),
    "",
    report.ok
      ? `Training works here, on ${report.backend === "cpu" ? "the CPU backend" : "WebGPU"}.`
      : "Training does not work here yet: see what is marked bad.",
  ];
}

/** Compares versions such as 2.9.6, number by number; what follows a dash is left out. */
export function atLeast(version: string, needed: string): boolean {
  const [ours, theirs] = [version, needed].map((text) => text.split("-")[0].split(".").map(Number));
  for (let index = 0; index < theirs.length; index++) {
    if (ours[index] !== theirs[index]) return ours[index] > theirs[index];
  }
  return true;
}

function list(folder: string): string[] {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => name);
  } catch {
    return [];
  }
}

function readText(path: string): string | undefined {
  try {
    return Deno.readTextFileSync(path);
  } catch {
    return undefined;
  }
}

const summary = "say what this machine has for training, what is missing and what to type";

interface DoctorArguments extends ParsedArguments {
  readonly json: boolean;
  readonly run_dir: string;
  readonly help: boolean;
}

export const doctorVerb: Verb = {
  summary,
  async run(args) {
    const parser = createParser<DoctorArguments>()
      .addArgument("--json", { type: "flag", help: "Print one line of JSON" })
      .addArgument("--add-dawn", { type: "flag", help: "Fetch Dawn, the other WebGPU, from npm first" })
      .addArgument("--run_dir", { default: "RUN", help: "Folder that runs would be written to" });
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("doctor", summary));
      return 0;
    }
    return await doctor({ json: parsed.json, runDir: parsed.run_dir });
  },
};
