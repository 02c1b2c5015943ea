/** `troupe bench`: what this machine reaches. It reports, and judges no time. */
import { deviceOptions, openBackend } from "../backend/open.ts";
import { benchComm, commChild } from "./bench_comm.ts";
import { benchData } from "./bench_data.ts";
import { benchDevice, deviceChild } from "./bench_device.ts";
import { benchKernels, otherRuns } from "./bench_kernels.ts";
import { type BenchLine, reportDevice } from "./bench_line.ts";
import { benchMemory, benchPlannedMemory } from "./bench_memory.ts";
import { type BenchType, dtypes, modelSettings, type ModelSize, modelSizeNames, typeSettings } from "./bench_models.ts";
import { benchStartup, startupChild } from "./bench_startup.ts";
import { benchStep } from "./bench_step.ts";
import { benchSync, syncChild } from "./bench_sync.ts";
import { benchWorld } from "./bench_world.ts";
import { formatBytes } from "../observe/format.ts";
import { roomOf } from "../train/fit.ts";
import { ArgumentError, createParser, type ParsedArguments } from "./parser.ts";
import { freeMemory } from "./room_for_ranks.ts";
import { recordFromArguments, resolveWritten, say, type Verb, writtenRecord } from "./verb.ts";

const summary = "measure steps, kernels, start-up and communication, as JSON lines";

const description = `${summary}

  troupe bench
  troupe bench step --config configs/demo.yaml --steps 50
  troupe bench step --model 124M --dtype float16 --steps 10
  troupe bench kernels --backend cpu --set model.num_layers=1

Standard output carries one line of JSON a figure: {"bench", "figure", "value", "unit", …}.

  step      tokens/s and seconds a step, undisturbed; then the step's parts (data, forward, backward, optimizer,
            read_back), measured in passes of their own that wait for the device after each part; what dispatches cost
            the host, beside what they take on the device; memory
  memory    bytes on the device, part by part, planned and held, at their most, and this process's; then the same by plan
            alone of models of 124M, 350M and 1.3B parameters
  kernels   every kernel of the run, and of small models with what it has not: checked against its reference, then
            GFLOP/s or GB/s, with the least operations and bytes that it needs (attention as if over one segment)
  startup   from the start of the process to the end of the first step
  comm      all-reduce between 2 and between 4 processes of this host, 1 KiB to --mebibytes, beside a bare ring
  sync      what --nproc ranks (2, then 4, if left out) exchange in a step of the record, without its computing: gradients
            reduced, parameters gathered; seconds of each phase, beside what copying and adding take here; not part of all
  data      tokenizing by the run's tokenizer (MB/s, also a core), opening a made-up set of --documents, and its tokens/s
            through the loader's worker
  world     the control plane of --hosts hosts in this process: joining, --seconds of heartbeats, a host that fails, memory;
            ranks are actors that answer and compute nothing
  device    what this device and its host do, one by one (not of all): one JSON object, a file for troupe plan --device:
            troupe bench device --set runtime.device_memory=80GiB > gpu.json

Times are never judged. The exit code is 1 where a kernel does not agree with its reference.`;

const benches = ["all", "step", "kernels", "memory", "startup", "comm", "sync", "data", "world", "device"] as const;

interface BenchArguments extends ParsedArguments {
  readonly what: typeof benches[number];
  readonly config: string | undefined;
  readonly set: readonly string[];
  readonly backend: "webgpu" | "cpu" | undefined;
  readonly model: ModelSize | undefined;
  readonly dtype: BenchType | undefined;
  readonly steps: number;
  readonly repeats: number;
  readonly mebibytes: number;
  readonly nproc: number | undefined;
  readonly documents: number;
  readonly hosts: number;
  readonly seconds: number;
  readonly json: boolean;
  readonly help: boolean;
  readonly child: boolean;
}

const makeParser = () =>
  createParser<BenchArguments>()
    .addArgument("what", {
      nargs: "?",
      default: "all",
      help: "step, kernels, memory, startup, comm, sync, data, world, device or all (all if left out)",
    })
    .addArgument("--config", { help: "Run record, a YAML file; the demo's if left out" })
    .addArgument("--set", { repeat: true, help: "Change a field of the record: section.field=value" })
    .addArgument("--backend", {
      choices: ["webgpu", "cpu"],
      help: "What computes; same as --set runtime.backend=…",
    })
    .addArgument("--model", {
      choices: modelSizeNames,
      help: "A model of so many parameters, 4 × 1024 tokens a step of made-up data, instead of the record's",
    })
    .addArgument("--dtype", {
      choices: dtypes,
      help: "What the model is stored as; split: float32 on matrix units, each element in two parts",
    })
    .addArgument("--steps", { type: "int", default: 20, help: "Steps to measure, and as many split passes" })
    .addArgument("--repeats", {
      type: "int",
      default: 3,
      help: "Timings of each kernel and size, and starts of the program",
    })
    .addArgument("--mebibytes", { type: "int", default: 64, help: "Largest message of comm, in MiB" })
    .addArgument("--nproc", { type: "int", help: "Ranks of sync; 2, then 4, if left out" })
    .addArgument("--documents", { type: "int", default: 200_000, help: "Documents of data's made-up set" })
    .addArgument("--hosts", { type: "int", default: 1024, help: "Hosts of world, one rank each; 2 or more" })
    .addArgument("--seconds", { type: "int", default: 10, help: "How long world watches heartbeats" })
    .addArgument("--json", { type: "flag", help: "Accepted: standard output carries JSON lines anyway" })
    // The program's own: one start, measured from outside.
    .addArgument("--child", { type: "flag", verbs: [] });

export const bench: Verb = {
  summary,
  async run(args) {
    const parser = makeParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("bench", description));
      return 0;
    }
    const { what, steps, repeats, mebibytes, documents, hosts, seconds } = parsed;
    if (!benches.includes(what)) throw new ArgumentError(`"${what}" is not one of ${benches.join(", ")}`);
    for (const [name, value] of Object.entries({ steps, repeats, mebibytes, documents, hosts, seconds })) {
      if (value < 1) throw new ArgumentError(`--${name}: ${value} is not above 0`);
    }
    // Four processes hold a message each, and what they compare it with.
    const needed = mebibytes * 2 ** 20 * 8, free = parsed.given.has("mebibytes") ? freeMemory() : Infinity;
    if (needed > free) {
      throw new ArgumentError(
        `--mebibytes: ${mebibytes} takes ${formatBytes(needed)} of memory, and ${formatBytes(free)} are free`,
      );
    }
    if (hosts < 2) throw new ArgumentError(`--hosts: ${hosts} leaves nobody when one fails; 2 or more would work`);
    if (parsed.nproc !== undefined && parsed.nproc < 2) {
      throw new ArgumentError(`--nproc: ${parsed.nproc} has nobody to exchange with; 2 or more would work`);
    }
    const set = [
      ...(parsed.model === undefined ? [] : modelSettings(parsed.model)),
      ...(parsed.dtype === undefined ? [] : typeSettings(parsed.dtype)),
      ...parsed.set,
    ];
    const given = new Set([...parsed.given].filter((name) => name !== "nproc"));
    const recordArguments = { ...parsed, given, set, nproc: undefined, seed: 0, resume: false };
    if (parsed.child) {
      if (what === "comm") await commChild();
      else if (what === "sync") await syncChild();
      else if (what === "device") {
        const { runtime } = await recordFromArguments(recordArguments);
        using backend = await openBackend(runtime.backend, deviceOptions(runtime));
        await deviceChild(backend);
      } else await startupChild(recordArguments);
      return 0;
    }

    if (what === "sync") {
      const written = await writtenRecord(recordArguments);
      const configs = (worldSize: number) => Promise.resolve(resolveWritten(written, { worldSize }));
      const ranks = parsed.nproc === undefined ? [2, 4] : [parsed.nproc],
        { backend } = (await configs(ranks[0]!)).runtime;
      await benchSync({ configs, ranks, backend, repeats, report: (line) => console.log(JSON.stringify(line)) });
      return 0;
    }
    const config = await recordFromArguments(recordArguments);
    const report = (line: BenchLine) => console.log(JSON.stringify(line));
    const wanted = (name: typeof what) => what === name || what === "all";
    const words = [
      ...(parsed.config === undefined ? [] : [`--config=${parsed.config}`]),
      ...set.map((change) => `--set=${change}`),
      ...(parsed.backend === undefined ? [] : [`--backend=${parsed.backend}`]),
    ];
    if (wanted("startup")) {
      say(`Starting the program ${repeats} times`);
      await benchStartup(words, { repeats, report });
    }
    if (wanted("comm")) {
      say(`All-reduce between processes of this host, up to ${mebibytes} MiB`);
      await benchComm({ ranks: [2, 4], largest: mebibytes * 2 ** 20, repeats, report });
    }
    if (wanted("data")) {
      say(`Data of ${config.JOB_NAME}, and a made-up set`);
      await benchData(config, { documents, report });
    }
    if (wanted("world")) {
      say(`The control plane of ${hosts} hosts in this process, with ${seconds} s of heartbeats`);
      await benchWorld({ hosts, seconds, report });
    }
    if (what === "startup" || what === "comm" || what === "data" || what === "world") return 0;

    using backend = await openBackend(config.runtime.backend, deviceOptions(config.runtime));
    if (what === "device") {
      const memory = roomOf(config, backend)?.bytes;
      if (memory === undefined) {
        const example = "--set runtime.device_memory=80GiB";
        throw new ArgumentError(`WebGPU does not tell what memory a device has: say it, for example ${example}`);
      }
      const told = (what: string) => say(`Measuring ${what} on ${backend.traits.description}`);
      console.log(JSON.stringify(await benchDevice(backend, { memory, repeats, words, told }), null, 2));
      return 0;
    }
    reportDevice(backend, report);
    if (wanted("step")) {
      say(`${steps} steps and ${steps} split passes of ${config.JOB_NAME} on ${backend.traits.description}`);
      await benchStep(config, { backend, steps, report });
    }
    if (wanted("memory")) {
      say(`Memory of ${config.JOB_NAME} on ${backend.traits.description}, and of larger models by plan`);
      await benchMemory(config, { backend, steps, report });
      for (const size of modelSizeNames) {
        for (const dtype of ["float32", "float16"] as const) {
          const set = [...modelSettings(size), ...typeSettings(dtype)];
          await benchPlannedMemory(await recordFromArguments({ ...recordArguments, config: undefined, set }), report);
        }
      }
    }
    if (!wanted("kernels")) return 0;
    say(`Kernels of ${config.JOB_NAME} and of small models with what it has not, each checked, then timed`);
    const agree = await benchKernels([config, ...otherRuns()], { backend, repeats, report });
    if (!agree) say("A kernel does not agree with its reference: see the lines with agrees: false");
    return agree ? 0 : 1;
  },
};
