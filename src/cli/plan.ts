/** `troupe plan`: what a run would hold in device memory, and what a layout would do, without a device. */
import { parseBytes, type ResolvedConfig } from "../config/mod.ts";
import { openNullBackend } from "../backend/null/backend.ts";
import { elementCount } from "../graph/graph.ts";
import { formatBytes } from "../observe/format.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { drawTimeline, traceTimeline } from "../pipeline/draw.ts";
import { simulate } from "../pipeline/simulate.ts";
import { devices, links } from "../train/hardware.ts";
import { adviceFor, remedies, unfitting } from "../train/fit.ts";
import { estimateHostMemory, type HostMemory } from "../train/host_memory.ts";
import { planModel, prefetchOf } from "../train/model.ts";
import { stageSchedule } from "../train/stage.ts";
import { ArgumentError, type ParsedArguments } from "./parser.ts";
import { layoutName, planWorld, type WorldArguments } from "./plan_world.ts";
import { getRecordParser, resolveWritten, type Verb, writtenRecord } from "./verb.ts";

/** What the parts of a plan hold, where the name does not say it. */
const meanings: Readonly<Record<string, string>> = {
  masters: "the optimizer's float32 copy of parameters",
  optimizer: "its two moments",
  frames: "activations that backward passes will read",
  workspace: "what a pass needs for a moment",
  constants: "tables, such as those of positions",
  outputs: "losses, norms, scores on their way to the host",
  total: "of the device's memory",
};

/** No prediction for more was ever looked at. */
const mostRanks = 65_536;

const summary = "estimate the device memory that a run needs, or what a layout would do on many GPUs, without a device";

export const plan: Verb = {
  summary,
  async run(args) {
    const parser = getRecordParser()
      .addArgument("--memory", {
        help: "Memory of the device, such as 80GiB: says whether the run fits, or what would",
      })
      .addArgument("--binding", { help: "Largest buffer that a kernel of the device can bind, such as 2GiB" })
      .addArgument("--world", { type: "int", help: "Predict a run of so many ranks: memory, traffic, bubble, speed" })
      .addArgument("--device", {
        default: "h200",
        help: `GPU of --world: ${
          Object.keys(devices).join(", ")
        }, or a file of measured figures as troupe bench device prints it`,
      })
      .addArgument("--link", {
        default: "100GbE",
        help: `Network of --world between machines: ${Object.keys(links).join(", ")}`,
      })
      .addArgument("--per_host", { type: "int", default: 8, help: "GPUs of --world on one machine" })
      .addArgument("--per_device", {
        type: "int",
        help: "Ranks of --world that share a GPU; 1 unless --nproc puts more ranks on a machine than it has GPUs",
      })
      .addArgument("--search", { type: "flag", help: "Rank the layouts of --world that fit, instead of the record's" })
      .addArgument("--draw", {
        choices: ["svg", "trace"],
        help:
          "Print the pipeline's schedule as a picture or a Chrome trace; without --world every pass takes the same time",
      });
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("plan", summary));
      return 0;
    }
    const world = parsed.world as number | undefined;
    // A record cannot be completed for no ranks, and would be blamed.
    if (world !== undefined && world < 1) {
      throw new ArgumentError(`--world: ${world} is too small; 1 or more would work`);
    }
    if (world !== undefined && world > mostRanks) {
      throw new ArgumentError(`--world: ${world} is more than ${mostRanks} ranks, which is where predictions end`);
    }
    const idle = ["device", "link", "per_host", "per_device"].find((name) => parsed.given.has(name));
    if (idle !== undefined && world === undefined && !parsed.search) {
      throw new ArgumentError(`--${idle} is for predicting a run of --world ranks; --world 1 beside it would work`);
    }
    const written = await writtenRecord(parsed), draw = parsed.draw as WorldArguments["draw"];
    if (world !== undefined || parsed.search) {
      const options = { ...parsed, world: world ?? 1, draw } as unknown as WorldArguments;
      return await planWorld(written, options, (record, worldSize) => resolveWritten(record, { worldSize }));
    }
    if (draw) {
      const worldSize = leastWorld(written);
      console.log(drawEvenly(resolveWritten(written, { worldSize }), worldSize, draw));
      return 0;
    }

    const config = resolveWritten(written);
    const binding = bytesOf(parsed, "binding"), memoryGiven = bytesOf(parsed, "memory");
    using backend = openNullBackend({ ...(binding && { maxStorageBufferBindingSize: binding }) });
    const ranks = config.runtime.nproc;
    const planOf = (config: ResolvedConfig, place = { rank: 0, world: ranks }) =>
      planModel(config, backend.traits, runMesh(config, place));
    const planned = planOf(config), { memory, plan, shapes, stage } = planned;
    const mesh = runMesh(config, { rank: 0, world: ranks });
    const host = estimateHostMemory(config, { ...planned, mesh, prefetches: prefetchOf(config) });
    const room = memoryGiven
      ? { bytes: memoryGiven, from: "--memory" }
      : config.runtime.device_memory
      ? { bytes: config.runtime.device_memory, from: "runtime.device_memory" }
      : undefined;
    const fitting = room && {
      bytes: room.bytes,
      planned: (changed: ResolvedConfig) => planOf(changed).memory.total,
      replicas: mesh.size("data"),
      more: { world: ranks, planned: (...changed: Parameters<typeof planOf>) => planOf(...changed).memory.total },
    };
    const fits = !room || memory.total <= room.bytes;
    const parameters = [...shapes.values()].reduce((sum, shape) => sum + elementCount(shape), 0);
    if (parsed.json) {
      const found = fits ? {} : remedies(config, fitting!);
      console.log(JSON.stringify({ parameters, memory, host, ...(room && { room: room.bytes, ...found, fits }) }));
      return fits ? 0 : 1;
    }
    console.log(`${config.JOB_NAME}: ${config.model_type}, ${parameters.toLocaleString("en")} parameters`);
    if (ranks > 1) console.log(`  on the first of ${ranks} ranks: ${layoutName(config, ranks)}`);
    for (const [name, bytes] of Object.entries(memory)) {
      if (bytes === 0) continue;
      const meaning = meanings[name];
      console.log(`  ${name.padEnd(12)} ${formatBytes(bytes).padStart(10)}${meaning ? `  ${meaning}` : ""}`);
    }
    console.log(describeHost(config, host));
    const instructions = Object.entries(plan.segments).filter(([name]) => !name.startsWith("evaluate"))
      .reduce((sum, [, segment]) => sum + segment.instructions.length, 0);
    const { micro_num: microBatches } = config.data;
    const many = microBatches === 1 ? "" : "es", alone = ranks === 1 ? " and 1 read-back a step" : " a step";
    const frames = stage.frames.reduce((sum, count) => sum + count, 0);
    console.log(`  ${instructions} instructions a micro-batch, ${microBatches} micro-batch${many}${alone}`);
    if (frames > 1) console.log(`  ${frames} micro-batches in flight`);
    if (!fits) throw new RangeError(unfitting(memory.total, room!, adviceFor(config, fitting!)));
    if (room) console.log(`  fits: ${formatBytes(room.bytes - memory.total)} of ${formatBytes(room.bytes)} are left`);
    return 0;
  },
};

/** One line on what a rank takes of its machine, beside the device. */
function describeHost({ runtime }: ResolvedConfig, host: HostMemory): string {
  const parts: [string, number][] = [
    ["the program", host.program],
    ["gradients and parameters between ranks", host.synchronization],
    ["what passes exchange", host.passes],
    ["reading back", host.readBack],
    ["drawing the largest parameter", host.start],
  ];
  const told = parts.filter(([, bytes]) => bytes >= 0.02 * host.total).map(([what, bytes]) =>
    `${formatBytes(bytes)} ${what}`
  );
  const both = runtime.backend === "cpu" ? "; the CPU backend takes the rest of it too" : "";
  return `  ${"host".padEnd(12)} ${formatBytes(host.total).padStart(10)}  of the machine's memory for a rank: ${
    told.join(", ")
  }${both}`;
}

/** An amount of memory on the command line. */
function bytesOf(parsed: ParsedArguments, name: "memory" | "binding"): number | undefined {
  const text = parsed[name] as string | undefined, bytes = text === undefined ? undefined : parseBytes(text);
  if (text !== undefined && bytes === undefined) {
    throw new ArgumentError(`--${name}: "${text}" is no amount of memory; 80GiB or 128MiB would work`);
  }
  return bytes;
}

/** Ranks of one replica, as the record has them. */
function leastWorld(written: Record<string, unknown>): number {
  const parallel = (written.parallel ?? {}) as Record<string, unknown>;
  const sizeOf = (section: unknown) => Number((section as { size?: unknown } | null)?.size ?? section ?? 1) || 1;
  return sizeOf(parallel.pipeline ?? 1) * sizeOf(parallel.tensor ?? 1);
}

/**
 * The schedules of all stages as papers draw them: a forward pass takes one unit, a backward pass two.
 *
 * @param world ranks in all: those of one replica, or any multiple
 */
export function drawEvenly(config: ResolvedConfig, world: number, draw: "svg" | "trace"): string {
  const stages = config.parallel.pipeline.size, chunks = stages === 1 ? 1 : config.model.num_chunks;
  const schedules = Array.from({ length: stages }, (_, stage) => {
    const mesh = runMesh(config, { rank: stage * world / stages, world });
    return stageSchedule(config, mesh).schedule(config.data.micro_num);
  });
  const timeline = simulate(schedules, { run: (segment) => (segment === "backward" ? 2 : 1) / chunks });
  if (draw === "trace") return JSON.stringify(traceTimeline(timeline));
  return drawTimeline(timeline, { title: scheduleTitle(config) }).trimEnd();
}

/** `interleaved of 2 chunks, 4 stages, 8 micro-batches`. */
export function scheduleTitle({ parallel: { pipeline }, model, data }: ResolvedConfig): string {
  const chunks = pipeline.size > 1 && model.num_chunks > 1 ? ` of ${model.num_chunks} chunks` : "";
  return `${pipeline.schedule}${chunks}, ${pipeline.size} stages, ${data.micro_num} micro-batches`;
}
