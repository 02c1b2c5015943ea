/** `troupe plan --world`: what a layout would do on machines that are not there, and which layout would do best. */
import { applyChanges, parallelSizes, type ResolvedConfig } from "../config/mod.ts";
import { formatBytes, formatCount } from "../observe/format.ts";
import { drawTimeline, traceTimeline } from "../pipeline/draw.ts";
import type { Machines } from "../train/charge.ts";
import { isDeviceFile, readDeviceFile } from "../train/device_file.ts";
import { devices, links } from "../train/hardware.ts";
import { predict, type Prediction, type StagePrediction } from "../train/predict.ts";
import { differences, layoutsOf, type Ranked, search } from "../train/search.ts";
import { ArgumentError } from "./parser.ts";
import { say } from "./verb.ts";

export interface WorldArguments {
  readonly world: number;
  readonly device: string;
  readonly link: string;
  readonly per_host: number;
  readonly per_device?: number | undefined;
  readonly search: boolean;
  readonly draw: "svg" | "trace" | undefined;
  readonly json: boolean;
}

/**
 * @param nproc ranks that the record puts on each machine
 * @throws {ArgumentError} for a name that is in no table, or a number of ranks that none can be
 */
export async function machinesOf(
  { world, device, link, per_host: perHost, per_device }: WorldArguments,
  nproc = 1,
): Promise<Machines> {
  const find = <T>(table: Readonly<Record<string, T>>, name: string, what: string, also = ""): T => {
    const found = Object.entries(table).find(([key]) => key.toLowerCase() === name.toLowerCase());
    if (!found) {
      const known = Object.keys(table).join(", ");
      throw new ArgumentError(`--${what}: nothing is known of "${name}"; ${known}${also} would work`);
    }
    return found[1];
  };
  const perDevice = per_device ?? Math.max(1, Math.ceil(nproc / Math.max(1, perHost)));
  for (const [name, value] of Object.entries({ world, per_host: perHost, per_device: perDevice })) {
    if (value < 1) throw new ArgumentError(`--${name}: ${value} is too small; 1 or more would work`);
  }
  return {
    world,
    perHost,
    perDevice,
    device: isDeviceFile(device)
      ? await readDeviceFile(device)
      : find(devices, device, "device", ", or a file that troupe bench device prints,"),
    link: find(links, link, "link"),
  };
}

const percent = (share: number) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const seconds = (value: number) =>
  value >= 1 || value === 0
    ? `${value === 0 ? 0 : value.toFixed(2)} s`
    : value >= 1e-3
    ? `${(1000 * value).toFixed(1)} ms`
    : `${(1e6 * value).toFixed(0)} us`;

/** `2 stages x tensor 4 (mtp) x 128 replicas, zbh1`. */
export function layoutName(config: ResolvedConfig, world: number): string {
  const { tp, pp, dp } = parallelSizes(config, world), { tensor, pipeline } = config.parallel;
  const parts = [
    ...(pp > 1 ? [`${pp} stages`] : []),
    ...(tp > 1 ? [`tensor ${tp} (${tensor.mode})`] : []),
    `${dp} replica${dp === 1 ? "" : "s"}`,
  ];
  const schedule = pp > 1
    ? `, ${pipeline.schedule}${config.model.num_chunks > 1 ? ` of ${config.model.num_chunks} chunks` : ""}`
    : "";
  const recomputed = config.model.checkpoint > 0 ? `, ${percent(config.model.checkpoint)} recomputed` : "";
  return parts.join(" x ") + schedule + recomputed;
}

function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    `  ${row.map((cell, column) => column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!)).join("  ")}`
  );
}

const layersOf = ({ layers }: StagePrediction) =>
  layers.map(({ first, end }) => end - first === 1 ? `${first}` : `${first}-${end - 1}`).join(", ");

function describe(config: ResolvedConfig, machines: Machines, prediction: Prediction): string[] {
  const { stages, traffic, bubble, step, parts, memory, deviceMemory, fits, tflops, utilisation } = prediction,
    { device, link, world, perHost = 8, perDevice = 1 } = machines;
  const { data } = config, { dp } = parallelSizes(config, machines.world);
  const rows = [["stage", "layers", "parameters", "in flight", "memory", "forward", "backward"]];
  const shown = stages.length <= 10 ? [...stages.keys()] : [0, 1, 2, -1, stages.length - 2, stages.length - 1];
  for (const index of shown) {
    const stage = stages[index];
    rows.push(
      stage
        ? [
          `${index}`,
          layersOf(stage),
          formatCount(stage.parameters),
          stage.frames.join(" + "),
          formatBytes(stage.memory.total),
          seconds(stage.forward),
          seconds(stage.backward),
        ]
        : ["...", "", "", "", "", "", ""],
    );
  }
  const sent = Object.entries(traffic).map(([axis, bytes]) => `${axis} ${formatBytes(bytes)}`).join(", ");
  const gpus = Math.ceil(world / perDevice), hosts = Math.ceil(gpus / perHost);
  return [
    `${config.JOB_NAME}: ${config.model_type}, ${formatCount(prediction.parameters)} parameters`,
    `  ${
      perDevice > 1 ? `${world} ranks, ${perDevice} on each of ` : ""
    }${gpus} x ${device.description} on ${hosts} machine${hosts === 1 ? "" : "s"}${
      hosts === 1 ? "" : `, ${link.description} between them`
    }`,
    `  ${layoutName(config, machines.world)}`,
    `  ${data.micro_num} micro-batch${data.micro_num === 1 ? "" : "es"} of ${
      formatCount(data.packed_length)
    } tokens a replica, ` +
    `${formatCount(dp * data.micro_num * data.packed_length)} tokens a step`,
    "",
    ...table(rows),
    "",
    `  figures  ${device.source}`,
    `  memory   ${
      perDevice > 1 ? `${formatBytes(memory)} a rank, ${formatBytes(deviceMemory)}` : formatBytes(memory)
    } of ${formatBytes(device.memory)}${fits ? "" : ": DOES NOT FIT"}`,
    `  sent     ${sent === "" ? "nothing" : `${sent} by a rank in a step`}`,
    `  step     ${seconds(step)}: ${seconds(parts.pipeline)} of passes${
      stages.length > 1 ? ` (${percent(bubble)} of it idle)` : ""
    }, ${seconds(parts.gradients)} of gradients and parameters between ranks, ${seconds(parts.update)} of the update`,
    ...(prediction.stepAtMost
      ? [
        `  experts  chosen evenly; ${
          seconds(prediction.stepAtMost)
        } a step if as many tokens come as there is room for`,
      ]
      : []),
    `  speed    ${formatCount(prediction.tokensPerSecondPerGpu)} tokens/s per GPU, ${
      formatCount(prediction.tokensPerSecond)
    } in all; ` +
    `${tflops.toFixed(1)} TFLOP/s each, ${percent(utilisation)} of what matrix products reach`,
  ];
}

function summary(config: ResolvedConfig, world: number, set: readonly string[], prediction: Prediction) {
  const { timeline: _, ...figures } = prediction;
  return { layout: layoutName(config, world), set, ...figures };
}

/**
 * @param written the record as the user wrote it, to change layouts of
 * @param resolve completes and checks a record
 * @returns the exit code
 */
export async function planWorld(
  written: Record<string, unknown>,
  args: WorldArguments,
  resolve: (written: unknown, worldSize: number) => ResolvedConfig,
): Promise<number> {
  const config = resolve(written, args.world);
  const machines = await machinesOf(args, config.runtime.nproc), { world } = machines;
  if (args.search) return searchWorld(written, config, machines, args, resolve);
  const prediction = predict(config, machines);
  if (args.draw === "svg") {
    console.log(drawTimeline(prediction.timeline, { title: layoutName(config, world) }).trimEnd());
  } else if (args.draw === "trace") console.log(JSON.stringify(traceTimeline(prediction.timeline)));
  else if (args.json) console.log(JSON.stringify(summary(config, world, [], prediction)));
  else describe(config, machines, prediction).forEach((line) => console.log(line));
  return 0;
}

function searchWorld(
  written: Record<string, unknown>,
  config: ResolvedConfig,
  machines: Machines,
  { json }: WorldArguments,
  resolve: (written: unknown, worldSize: number) => ResolvedConfig,
): number {
  const { world, device } = machines, sets = layoutsOf(config, machines);
  let told = performance.now();
  const { fitting, tooLarge, refused } = search(sets, machines, {
    resolve: (set) => resolve(applyChanges(written, set), world),
    onTried(done, all) {
      if (performance.now() - told < 3000 && done < all) return;
      told = performance.now();
      say(`${done} of ${all} layouts tried`);
    },
  });
  if (json) {
    for (const { config, set, prediction } of fitting) {
      console.log(JSON.stringify(summary(config, world, set, prediction)));
    }
  } else {
    const rows = [["layout", "memory", "idle", "between ranks", "step", "tokens/s per GPU", "of matmul"]];
    for (const { config, prediction } of fitting.slice(0, 20)) {
      rows.push([
        layoutName(config, world),
        formatBytes(prediction.memory),
        percent(prediction.bubble),
        seconds(prediction.parts.gradients),
        seconds(prediction.step),
        formatCount(prediction.tokensPerSecondPerGpu),
        percent(prediction.utilisation),
      ]);
    }
    if (fitting.length > 0) table(rows).forEach((line) => console.log(line));
    if (fitting.length > 20) console.log(`  and ${fitting.length - 20} slower ones`);
    if (fitting[0]) {
      const changes = fitting[0].set.filter((change) => !isSo(config, change)).map((change) => `--set ${change}`);
      console.log(`\nThe first one: ${changes.length > 0 ? changes.join(" ") : "the record as it is"}`);
      const asWritten = fitting.slice(1).find(({ set }) => set.every((change) => isSo(config, change)));
      const others = [fitting[1], asWritten === fitting[1] ? undefined : asWritten];
      console.log(whyBest(fitting[0], others.filter((each) => each !== undefined), world));
    }
  }
  if (tooLarge.length > 0) {
    const { config, prediction } = tooLarge[0]!;
    say(
      `${tooLarge.length} layout${tooLarge.length === 1 ? " does" : "s do"} not fit ${formatBytes(device.memory)}; ` +
        `the smallest of them, ${layoutName(config, world)}, takes ${formatBytes(prediction.memory)}`,
    );
  }
  for (const { reason, layouts } of refused) say(`not tried, ${layouts} layout${layouts === 1 ? "" : "s"}: ${reason}`);
  return fitting.length > 0 ? 0 : 1;
}

const partNames = {
  pipeline: "passes",
  gradients: "gradients and parameters between ranks",
  update: "the update",
} as const;

/** What the first layout's step consists of, and where others lose time against it. */
export function whyBest({ prediction }: Ranked, others: readonly Ranked[], world: number): string {
  const { step, parts, bubble } = prediction, idle = bubble > 0 ? ` (${percent(bubble)} idle)` : "";
  const own = `${seconds(parts.pipeline)} of passes${idle}, ${seconds(parts.gradients)} between ranks`;
  const against = others.map((other) => {
    const found = differences(prediction, other.prediction).map(([part, more]) =>
      `${more > 0 ? "+" : "-"}${seconds(Math.abs(more))} of ${partNames[part]}`
    );
    const where = found.length > 0 ? `: ${found.join(", ")}` : "";
    return `${layoutName(other.config, world)} takes ${seconds(other.prediction.step - step)} longer${where}`;
  });
  return [`Its step is ${own}`, ...against].join("; ");
}

/** Whether a field has the value that `section.field=value` gives it. */
function isSo(config: ResolvedConfig, change: string): boolean {
  const [path, text] = change.split("=") as [string, string];
  const value = path.split(".").reduce<unknown>((inner, key) => (inner as Record<string, unknown>)[key], config);
  return String(value) === text;
}
