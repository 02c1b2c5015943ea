/**
 * `troupe convert`: between Troupe's checkpoints and Hugging Face folders, on the host and tensor by tensor, so that a
 * model larger than any device here can be converted.
 */
import { parse } from "@std/yaml";
import { basename, dirname, extname, join } from "node:path";
import { openNullBackend } from "../backend/null/backend.ts";
import {
  type Checkpoint,
  entryKinds,
  HuggingFaceFolder,
  type Json,
  listCheckpoints,
  newestUsable,
  openCheckpoint,
  parseStoragePath,
  saveCheckpoint,
  type ShardEntry,
  verifyCheckpoint,
  wholeEntry,
  writeHuggingFace,
} from "../checkpoint/mod.ts";
import { printResolved, resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { createTrainLoader } from "../data/mod.ts";
import { tokenizerFile } from "../data/tokenizer.ts";
import { elementCount } from "../graph/graph.ts";
import { Program } from "../graph/program.ts";
import { fromParameters, parameterShape, toParameters } from "../models/convert.ts";
import { type HuggingFaceFormat, type TensorMapping, tensorsIn } from "../models/family.ts";
import { getModule, moduleNames } from "../models/registry.ts";
import { formatCount } from "../observe/format.ts";
import { solo } from "../parallel/world.ts";
import { initializeOptimizer, initializeTrainer } from "../train/initialize.ts";
import { expectSameModel } from "../train/load_hugging_face.ts";
import { planModel } from "../train/model.ts";
import { loadPlugins } from "../train/plugins.ts";
import { ArgumentError, createParser, type ParsedArguments } from "./parser.ts";
import { resolveWritten, say, undivided, type Verb, writtenRecord } from "./verb.ts";
import { requireAllowed } from "./writable.ts";

const summary = "convert between a checkpoint and a Hugging Face folder";

const description = `${summary}

  troupe convert RUN/demo/checkpoints my-model
  troupe convert RUN/demo/checkpoints/300 my-model --max_shard_size 5GB
  troupe convert llama-folder checkpoints --config my_run.yaml

From a checkpoint, or from a folder of them (the newest usable one), to a Hugging Face folder: config.json follows from
the run record that the checkpoint keeps, and the tokenizer is copied where the record names it.

From a Hugging Face folder to a checkpoint of step 0, TARGET/0, for the run that --config describes: weights as given,
moments zero, data and schedules at the begin. A run whose ckpt.save_ckpt_folder is TARGET resumes from it.`;

interface ConvertArguments extends ParsedArguments {
  readonly source: string;
  readonly target: string;
  readonly config: string | undefined;
  readonly set: readonly string[];
  readonly max_shard_size: string | undefined;
  readonly overwrite: boolean;
  readonly json: boolean;
  readonly help: boolean;
}

const makeParser = () =>
  createParser<ConvertArguments>()
    .addArgument("source", { help: "A checkpoint, a folder of checkpoints, or a Hugging Face folder" })
    .addArgument("target", { help: "The folder to make: a Hugging Face folder, or a folder of checkpoints" })
    .addArgument("--config", { help: "Run record of the checkpoint to make, a YAML file" })
    .addArgument("--set", { repeat: true, help: "Change a field of that record: section.field=value" })
    .addArgument("--max_shard_size", {
      help: "Largest weight file of a Hugging Face folder, such as 5GB or 500MiB (10GB if left out)",
    })
    .addArgument("--overwrite", { type: "flag", help: "Replace what TARGET holds instead of refusing" })
    .addArgument("--json", { type: "flag", help: "Standard output carries one line of JSON" });

const units: Readonly<Record<string, number>> = {
  "": 1,
  B: 1,
  KB: 1e3,
  MB: 1e6,
  GB: 1e9,
  TB: 1e12,
  KIB: 2 ** 10,
  MIB: 2 ** 20,
  GIB: 2 ** 30,
  TIB: 2 ** 40,
};

/** Bytes of `5GB`, `500MiB` or `123456`. */
export function parseSize(text: string): number {
  const [, digits, unit] = text.match(/^(\d+(?:\.\d+)?)\s*([a-z]*)$/i) ?? [];
  const bytes = Math.floor(Number(digits) * (units[unit?.toUpperCase() ?? ""] ?? NaN));
  if (!(bytes >= 1)) throw new ArgumentError(`--max_shard_size: "${text}" is not a size; 5GB or 500MiB would work`);
  return bytes;
}

// ------------------------------------------------------------------------------------------------- what there is

function namesIn(folder: string): string[] | undefined {
  try {
    return [...Deno.readDirSync(folder)].map(({ name }) => name);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    if (error instanceof Deno.errors.NotADirectory) throw new ArgumentError(`${folder} is a file, a folder is needed`);
    throw error;
  }
}

function kindOf(folder: string): "hugging face" | "checkpoint" | "checkpoints" {
  const names = namesIn(folder);
  if (names === undefined) throw new ArgumentError(`there is no folder ${folder}`);
  if (names.includes("manifest.json") || names.includes("COMMITTED")) return "checkpoint";
  if (names.includes("config.json")) return "hugging face";
  if (listCheckpoints(folder).length > 0) return "checkpoints";
  throw new ArgumentError(
    `${folder} is neither a checkpoint (manifest.json), nor a folder of checkpoints, nor a Hugging Face folder ` +
      "(config.json)",
  );
}

function formatOf(config: ResolvedConfig): HuggingFaceFormat {
  const { huggingFace } = getModule(config.model_type);
  if (huggingFace) return huggingFace;
  throw new RangeError(`Model type ${config.model_type} declares no Hugging Face format, so it cannot be converted`);
}

const parametersIn = (mappings: readonly TensorMapping[]) =>
  mappings.flatMap((mapping) =>
    mapping.parts.map((part) => ({ mapping, part, name: part.parameter, shape: parameterShape(mapping, part) }))
  );

function listed(names: readonly string[]): string {
  return names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
}

/** What was made; with `--json`, printed as it is. */
interface Report {
  readonly to: "hugging face" | "checkpoint";
  readonly source: string;
  readonly target: string;
  readonly step: number;
  readonly model_type: string;
  /** Tensors of the Hugging Face folder. */
  readonly tensors: number;
  /** Numbers in them. */
  readonly parameters: number;
  /** Written to a Hugging Face folder. */
  readonly files?: readonly string[];
}

const countNumbers = (mappings: readonly TensorMapping[]) =>
  mappings.reduce((sum, { shape }) => sum + elementCount(shape), 0);

// ------------------------------------------------------------------------------- from a checkpoint to Hugging Face

/** The run record that a checkpoint keeps, as text. */
async function storedRecord({ manifest, directory }: Checkpoint): Promise<ResolvedConfig> {
  let written: Record<string, unknown>;
  try {
    written = parse(manifest.config) as Record<string, unknown>;
  } catch (error) {
    throw new SyntaxError(`The run record kept in ${directory} cannot be read: ${(error as Error).message}`);
  }
  const plugins = (written?.runtime as { plugins?: unknown } | undefined)?.plugins;
  if (Array.isArray(plugins)) await loadPlugins(plugins.map(String));
  return resolveConfig(undivided(written), { modelTypes: moduleNames(), allowRefused: true, worldSize: 1 });
}

/** Copies the tokenizer that a record names, a file or a folder. @returns names of the files copied */
async function copyTokenizer(path: string | null, folder: string): Promise<string[]> {
  if (path === null) return [];
  const file = tokenizerFile(path), name = /\.(json|model)$/.test(file) ? `tokenizer${extname(file)}` : basename(file);
  if (!await copied(file, join(folder, name))) {
    say(`The tokenizer ${file}, which the record names, is not there: it was not copied`);
    return [];
  }
  const settings = "tokenizer_config.json";
  return [name, ...await copied(join(dirname(file), settings), join(folder, settings)) ? [settings] : []];
}

async function copied(from: string, to: string): Promise<boolean> {
  try {
    await Deno.copyFile(from, to);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

async function toHuggingFace(
  checkpoint: Checkpoint,
  target: string,
  maxShardBytes: number | undefined,
): Promise<Report> {
  const config = await storedRecord(checkpoint);
  const { tensors, toConfig } = formatOf(config);
  const mappings = tensors(config.model), parameters = parametersIn(mappings);
  for (const { name, shape } of parameters) checkpoint.expectTensor("parameter", name, shape);
  const known = new Set(parameters.map(({ name }) => name));
  const extra = checkpoint.names("parameter").filter((name) => !known.has(name));
  if (extra.length > 0) {
    throw new RangeError(
      `Checkpoint ${checkpoint.directory} holds what a Hugging Face folder cannot: ${listed(extra)}`,
    );
  }
  const files = await writeHuggingFace(target, {
    config: toConfig(config.model),
    tensors: mappings.map((mapping) => ({
      name: mapping.tensor,
      dtype: "F32",
      shape: mapping.shape,
      data: () => [
        fromParameters(mapping, (name) => checkpoint.readTensor("parameter", name) as Float32Array<ArrayBuffer>),
      ],
    })),
    ...(maxShardBytes !== undefined && { maxShardBytes }),
  });
  return {
    to: "hugging face",
    source: checkpoint.directory,
    target,
    step: checkpoint.step,
    model_type: config.model_type,
    tensors: mappings.length,
    parameters: countNumbers(mappings),
    files: ["config.json", ...files, ...await copyTokenizer(config.data.tokenizer_path, target)],
  };
}

// ------------------------------------------------------------------------------- from Hugging Face to a checkpoint

/** Tensors that carry no weight: tables that older exports keep. */
const weightless = /rotary_emb\.inv_freq$/;

function expectTensors(source: HuggingFaceFolder, mappings: readonly TensorMapping[]): void {
  for (const { tensor, shape } of mappings) source.expectTensor(tensor, shape);
  const known = new Set(mappings.map(({ tensor }) => tensor));
  const extra = source.names.filter((name) => !known.has(name) && !weightless.test(name));
  if (extra.length > 0) {
    throw new RangeError(`${source.folder} holds tensors that belong to no parameter of the model: ${listed(extra)}`);
  }
}

/**
 * Everything of a run before its first step that is not a tensor. Schedules are the trainer's own, on a backend that
 * holds nothing.
 */
async function initialState(config: ResolvedConfig): Promise<Json> {
  const loader = createTrainLoader({ ...config.data, use_shm: false }, {
    dataRank: 0,
    dataWorldSize: 1,
    onNotice: say,
  });
  try {
    using backend = openNullBackend();
    const { plan, ...planned } = planModel(config, backend.traits, solo.mesh);
    const program = await Program.create(backend, plan, { microBatches: config.data.micro_num });
    const model = { ...planned, config, program, world: solo, parameterCount: 0, [Symbol.dispose]() {} };
    const trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
    return { trainer: trainer.state(), data: loader.state() } as unknown as Json;
  } finally {
    loader.close();
  }
}

function* zeros(elements: number): Generator<Float32Array> {
  const piece = new Float32Array(Math.min(elements, 1 << 20));
  for (let left = elements; left > 0; left -= piece.length) yield left < piece.length ? piece.subarray(0, left) : piece;
}

async function toCheckpoint(source: HuggingFaceFolder, target: string, config: ResolvedConfig): Promise<Report> {
  const format = formatOf(config);
  expectSameModel(source, config, format);
  const mappings = tensorsIn(format, config.model, source.names), parameters = parametersIn(mappings);
  expectTensors(source, mappings);
  const read = ({ tensor, shape }: TensorMapping) =>
    source.readFloat32(tensor, new Float32Array(elementCount(shape))) as Float32Array<ArrayBuffer>;
  const entries = parameters.flatMap(({ mapping, part: { slice }, name, shape }): ShardEntry[] =>
    entryKinds.map((kind) => {
      const extent = slice ? [1, ...shape.slice(1)] : shape;
      const data = kind === "parameter"
        ? () => [toParameters(mapping, read(mapping)).get(name)!]
        : () => zeros(elementCount(extent));
      const whole = wholeEntry(kind, name, shape, data);
      return slice ? { ...whole, offset: shape.map((_, axis) => axis === 0 ? slice.index : 0), extent } : whole;
    })
  );
  const directory = await saveCheckpoint({
    folder: target,
    step: 0,
    entries,
    layout: { world_size: 1 },
    state: await initialState(config),
    config: printResolved(config),
  });
  return {
    to: "checkpoint",
    source: source.folder,
    target: directory,
    step: 0,
    model_type: config.model_type,
    tensors: mappings.length,
    parameters: countNumbers(mappings),
  };
}

// ------------------------------------------------------------------------------------------------------- the verb

function expectFree(target: string, overwrite: boolean): void {
  requireAllowed("TARGET", target);
  const names = namesIn(target) ?? [];
  if (names.length > 0 && !overwrite) {
    throw new ArgumentError(`${target} is not empty and is left alone; another folder, or --overwrite, would work`);
  }
}

async function convertFolders(parsed: ConvertArguments): Promise<Report> {
  const [source, target] = [parsed.source, parsed.target].map(parseStoragePath);
  const maxShardBytes = parsed.max_shard_size === undefined ? undefined : parseSize(parsed.max_shard_size);
  const kind = kindOf(source!);
  if (namesIn(target!) && Deno.realPathSync(source!) === Deno.realPathSync(target!)) {
    throw new ArgumentError(`${target} is the source; another folder would work`);
  }
  expectFree(target!, parsed.overwrite);
  if (kind === "hugging face") {
    if (parsed.config === undefined) {
      throw new ArgumentError("--config is missing: the run record of the checkpoint to make");
    }
    if (maxShardBytes !== undefined) throw new ArgumentError("--max_shard_size is for Hugging Face folders only");
    const written = await writtenRecord({ ...parsed, nproc: undefined, backend: undefined, seed: 0, resume: false });
    const config = resolveWritten(undivided(written), { worldSize: 1 });
    using folder = HuggingFaceFolder.open(source!);
    const report = await toCheckpoint(folder, target!, config);
    const [newest] = listCheckpoints(target!);
    if (newest && newest.step > 0) say(`${target} holds later checkpoints: a run resumes from step ${newest.step}`);
    return report;
  }
  if (parsed.config !== undefined || parsed.set.length > 0) {
    throw new ArgumentError("--config and --set are for making a checkpoint: this one has its own record");
  }
  if (kind === "checkpoint") await verifyCheckpoint(source!);
  using checkpoint = kind === "checkpoint" ? openCheckpoint(source!) : await newestUsable(source!, { onSkipped: say });
  if (!checkpoint) throw new RangeError(`${source} holds no usable checkpoint`);
  return await toHuggingFace(checkpoint, target!, maxShardBytes);
}

export const convert: Verb = {
  summary,
  async run(args) {
    const parser = makeParser();
    const parsed = parser.parse(args);
    if (parsed.help) {
      console.log(parser.help("convert", description));
      return 0;
    }
    const report = await convertFolders(parsed);
    if (parsed.json) console.log(JSON.stringify(report));
    else {
      const { source, target, model_type, tensors, parameters } = report;
      console.log(`${source} → ${target}`);
      console.log(`  ${model_type}, ${formatCount(parameters)} parameters in ${tensors} tensors, step ${report.step}`);
      if (report.files) console.log(`  ${listed(report.files)}`);
    }
    return 0;
  },
};
