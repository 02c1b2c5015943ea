/**
 * Replays a reference training made by another library and reports how far ours strays from it: the strongest test
 * there is of a whole engine, and a health check of a user's GPU.
 */
import type { Backend } from "../backend/backend.ts";
import { fileError } from "../checkpoint/durable.ts";
import { HuggingFaceFolder } from "../checkpoint/mod.ts";
import { ignoreIndex, type MicroBatch } from "../data/mod.ts";
import { applyChanges, parallelSizes, resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { tensorsIn } from "../models/family.ts";
import { getModule, modelTypeOf } from "../models/registry.ts";
import { solo, type World } from "../parallel/world.ts";
import { evenBounds } from "../comm/collectives/algorithms.ts";
import { exportTensor, importWeights, norm } from "./weights.ts";
import { initializeModel } from "./model.ts";
import { initializeOptimizer, initializeTrainer } from "./initialize.ts";
import { Choices, type Tie } from "./ties.ts";

type ReferenceTokens = readonly (readonly number[])[] | readonly number[];

/** `curve.json` of a reference folder. */
export interface ReferenceCurve {
  readonly case?: string;
  readonly optimizer: { lr: number; betas: [number, number]; eps: number; weight_decay: number };
  readonly clip_grad_norm: number;
  readonly seq_len: number;
  readonly batch: number;
  readonly steps: readonly {
    /** Micro-batches: rows of `seq_len + 1` ids, or one flat row with `cu_seqlens`. */
    readonly tokens: readonly ReferenceTokens[];
    readonly cu_seqlens?: readonly (readonly number[])[];
    readonly loss: number;
    readonly grad_norm: number;
  }[];
  /** Logits of the first micro-batch: row 0, first positions, first vocabulary entries. */
  readonly first_logits_slice: readonly (readonly number[])[];
  readonly final_param_norms: Readonly<Record<string, number>>;
}

export interface Tolerances {
  readonly loss: number;
  readonly gradNorm: number;
  readonly logits: number;
  readonly paramNorm: number;
}
export const defaultTolerances: Tolerances = { loss: 2e-4, gradNorm: 1e-3, logits: 1e-4, paramNorm: 1e-4 };

const ofHalfTypes = {
  float16: { loss: 1e-3, gradNorm: 1e-2, logits: 1e-3, paramNorm: 5e-2 },
  bfloat16: { loss: 5e-3, gradNorm: 2e-2, logits: 1e-2, paramNorm: 0.2 },
};

/**
 * Within what a model follows a reference, which is `float32` itself: `float32` has the same function to compute. What is
 * rounded to a half type differs from the first loss on; twice or more what all references showed, on the CPU and on software
 * Vulkan, is allowed.
 *
 * A mixture of experts differs more, although its router computes in `float32`: a rounded input may choose another expert.
 * In `float16` 1 to 15 of 256 tokens a layer do in `hf/mixtral`, and the loss strays by 1.5e-3; sent to the experts that
 * `float32` chooses, it strays by 0.4e-3, near a dense model (`bfloat16`: 2.9e-3, and 1.8e-3).
 */
function tolerancesOf(
  { dtype, num_experts }: Pick<ResolvedConfig["model"], "dtype" | "num_experts">,
): Tolerances {
  if (dtype === "float32") return defaultTolerances;
  const { loss, gradNorm, ...others } = ofHalfTypes[dtype];
  const factor = num_experts > 1 ? { float16: 3, bfloat16: 1.5 }[dtype] : 1;
  return { loss: factor * loss, gradNorm: factor * gradNorm, ...others };
}

/** What `troupe verify` prints, in this order. */
export interface VerifyReport {
  readonly case: string;
  readonly backend: string;
  readonly nproc: number;
  readonly steps: number;
  readonly maxLossError: number;
  readonly maxGradNormRelError: number;
  readonly maxFirstLogitError: number;
  readonly maxParamNormRelError: number;
  readonly pass: boolean;
  /** Of a mixture of experts in `float32` whose losses fail: the tie that may be why, and what a replay was that broke it. */
  readonly tie?: Tie & { readonly otherwise: Omit<VerifyReport, "tie"> };
}

export interface VerifyOptions {
  readonly backend: Backend;
  /** Ranks that replay together; all of them report the same. @default {1} */
  readonly nproc?: number;
  /** This rank's world, once the record is known; needed where there are several. */
  readonly world?: (config: ResolvedConfig) => World | Promise<World>;
  /** @default those of the model's type, `tolerancesOf` */
  readonly tolerances?: Partial<Tolerances>;
  /** Told of the tolerances that hold, before the first step. */
  readonly onStart?: (tolerances: Tolerances) => void;
  /** Fields of the run record to change, as `section.field=value`. */
  readonly set?: readonly string[];
  readonly onStep?: (step: { step: number; steps: number; loss: number; expected: number }) => void;
  /** Told of a tie that may be why it fails, before the second replay. */
  readonly onTie?: (tie: Tie) => void;
}

/** Row of tokens with boundaries to a micro-batch; the last token of each piece has no label. */
function referenceMicroBatch(
  tokens: ReferenceTokens,
  cuSeqlens: readonly number[] | undefined,
): MicroBatch {
  const packed = cuSeqlens !== undefined;
  const pieces = packed
    ? cuSeqlens.slice(1).map((end, index) => (tokens as readonly number[]).slice(cuSeqlens[index], end))
    : (tokens as readonly (readonly number[])[]);
  // A row of a batch brings its last label along; a packed piece does not.
  const lengths = pieces.map((piece) => packed ? piece.length : piece.length - 1);
  const total = lengths.reduce((sum, length) => sum + length, 0);
  const batch = {
    inputIds: new Uint32Array(total),
    labels: new Int32Array(total).fill(ignoreIndex),
    positions: new Uint32Array(total),
    segmentStart: new Uint32Array(total),
    segmentEnd: new Uint32Array(total),
    typeIds: new Uint32Array(total),
    segments: pieces.length,
    longestSegment: Math.max(...lengths),
  };
  let start = 0;
  pieces.forEach((piece, index) => {
    const length = lengths[index]!;
    for (let i = 0; i < length; i++) {
      batch.inputIds[start + i] = piece[i]!;
      if (i + 1 < piece.length) batch.labels[start + i] = piece[i + 1]!;
      batch.positions[start + i] = i;
      batch.segmentStart[start + i] = start;
      batch.segmentEnd[start + i] = start + length;
    }
    start += length;
  });
  return batch;
}

/** A step's micro-batches; where there are fewer than data-parallel ranks, rows of equal weight are dealt out. */
function referenceBatch({ tokens, cu_seqlens }: ReferenceCurve["steps"][number], replicas: number): MicroBatch[] {
  const parts = Math.ceil(replicas / tokens.length);
  return tokens.flatMap((piece: ReferenceTokens, index: number) => {
    const bounds = cu_seqlens?.[index];
    if (bounds !== undefined || piece.length % parts !== 0) return [referenceMicroBatch(piece, bounds)];
    const rows = piece as readonly (readonly number[])[], each = rows.length / parts;
    return Array.from(
      { length: parts },
      (_, part) => referenceMicroBatch(rows.slice(part * each, (part + 1) * each), undefined),
    );
  });
}

const json = (path: string): unknown => {
  let text: string;
  try {
    text = Deno.readTextFileSync(path);
  } catch (error) {
    throw fileError("read", path, error);
  }
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new SyntaxError(`Cannot read ${path}: ${(error as Error).message}`, { cause: error });
  }
};

/** What a reference training is called: its folder's name. */
export const caseOf = (folder: string): string => folder.replace(/\/+$/, "").split("/").at(-1)!;

/**
 * Replays the training of a folder. Where a mixture of experts leaves its reference at a tie of two experts, it is replayed
 * once more with the other one there, to know whether that is all: it fails all the same.
 *
 * @param folder holds `config.json`, `model.safetensors` and `curve.json`
 * @throws a clear error when a file is missing or the model is of a family that Troupe does not have
 */
export async function verify(folder: string, options: VerifyOptions): Promise<VerifyReport> {
  const { report, tie } = await replay(folder, options);
  if (report.pass || !tie) return report;
  options.onTie?.(tie);
  const { onStart: _, onStep: __, ...quiet } = options;
  const { report: otherwise } = await replay(folder, quiet, tie);
  return { ...report, tie: { ...tie, otherwise } };
}

/** @param broken a tie that is to be broken the other way */
async function replay(
  folder: string,
  options: VerifyOptions,
  broken?: Tie,
): Promise<{ readonly report: VerifyReport; readonly tie: Tie | undefined }> {
  const curve = json(`${folder}/curve.json`) as ReferenceCurve;
  if (!Array.isArray(curve.steps) || curve.steps.length === 0) {
    throw new TypeError(`Cannot verify ${folder}: curve.json has no steps`);
  }
  using source = HuggingFaceFolder.open(folder);
  const modelType = modelTypeOf(source.config);
  const format = getModule(modelType).huggingFace!;
  const { nproc = 1, world: worldOf = () => solo } = options;
  const record = (tokens: number, count: number) => ({
    model_type: modelType,
    model: format.toSection(source.config),
    data: { seq_len: tokens, micro_bsz: 1, micro_num: count, total_steps: curve.steps.length },
    // The rate is constant: the cosine starts and ends at it.
    loss: { moe_loss_coeff: 0 }, // reference trainings have the loss of the predictions alone
    adam: { lr, adam_beta1: betas[0], adam_beta2: betas[1], adam_eps: eps, weight_decay },
    lr_scheduler: { eta_min: lr },
    hybrid_zero_optimizer: { clip_grad_norm: curve.clip_grad_norm },
    ckpt: { enable_save_ckpt: false },
  });
  const { lr, betas, eps, weight_decay } = curve.optimizer;
  const resolve = (tokens: number, count: number) =>
    resolveConfig(applyChanges(record(tokens, count), options.set ?? []), { worldSize: nproc });
  const replicas = parallelSizes(resolve(curve.seq_len, curve.steps[0]!.tokens.length), nproc).dp;
  const microBatches = curve.steps.map((step) => referenceBatch(step, replicas));
  const tokensPerMicroBatch = microBatches[0]![0]!.inputIds.length;
  const config = resolve(tokensPerMicroBatch, Math.ceil(microBatches[0]!.length / replicas));
  const world = await worldOf(config), { mesh } = world;
  const tolerances = { ...tolerancesOf(config.model), ...options.tolerances };
  options.onStart?.(tolerances);

  using choices = Choices.watch(config, options.backend, broken);
  const model = await initializeModel(config, { backend: choices?.backend ?? options.backend, world });
  using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
  const mappings = tensorsIn(format, config.model, source.names);
  importWeights(model, mappings, source);

  const errors = { loss: 0, gradNorm: 0, logits: 0, paramNorm: 0 };
  const worst = (kind: keyof typeof errors, error: number) => {
    // A value that is no number must fail, and never does in a comparison.
    errors[kind] = Number.isNaN(error) ? Infinity : Math.max(errors[kind], error);
  };
  const relative = (actual: number, expected: number) =>
    Math.abs(actual - expected) / Math.max(Math.abs(expected), 1e-12);

  const lossErrors: number[] = [];
  const first = await trainer.evaluate([microBatches[0]![0]!], { logits: true });
  for (const { logits } of first.microBatches) { // none on a pipeline's stages but the last
    curve.first_logits_slice.forEach((row, position) =>
      row.forEach((expected, entry) => {
        worst("logits", Math.abs(logits![position * config.model.vocab_size + entry]! - expected));
      })
    );
  }
  for (const [step, expected] of curve.steps.entries()) {
    trainer.zeroGrad();
    const all = microBatches[step]!, bounds = evenBounds(all.length, replicas), replica = mesh.index("data");
    const own = all.slice(bounds[replica], bounds[replica + 1]);
    await choices?.begin(model, { step, first: bounds[replica]!, count: own.length });
    const { loss } = await trainer.executeSchedule({ microBatches: own, globalRows: all.length });
    const { gradNorm } = await trainer.step();
    await choices?.end();
    lossErrors.push(Math.abs(loss - expected.loss));
    worst("loss", lossErrors[step]!);
    worst("gradNorm", relative(gradNorm, expected.grad_norm));
    options.onStep?.({ step, steps: curve.steps.length, loss, expected: expected.loss });
  }
  await trainer.gather();
  for (const mapping of mappings) {
    const expected = curve.final_param_norms[mapping.tensor];
    if (expected === undefined) {
      throw new RangeError(`Cannot verify ${folder}: curve.json has no norm of ${mapping.tensor}`);
    }
    worst("paramNorm", relative(norm(await exportTensor(model, mapping)), expected));
  }
  const ofAll = Float32Array.from(Object.values(errors));
  await world.group("global").allReduce(ofAll, "max");
  (Object.keys(errors) as (keyof typeof errors)[]).forEach((kind, index) => errors[kind] = ofAll[index]!);
  const pass = (Object.keys(errors) as (keyof typeof errors)[]).every((kind) => errors[kind] <= tolerances[kind]);
  const report = {
    case: caseOf(folder),
    backend: options.backend.name,
    nproc,
    steps: curve.steps.length,
    maxLossError: errors.loss,
    maxGradNormRelError: errors.gradNorm,
    maxFirstLogitError: errors.logits,
    maxParamNormRelError: errors.paramNorm,
    pass,
  };
  return { report, tie: await choices?.tie(world, lossErrors, tolerances.loss) };
}
