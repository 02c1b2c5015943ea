/**
 * Loss, logits and gradients of whole models against InternEvo's (`internevo/models/model_numerics.json`), in `float32`,
 * on packed rows and on batches.
 */
import { assert, assertEquals } from "@std/assert";
import { openBackend } from "../src/backend/open.ts";
import { resolveConfig } from "../src/config/mod.ts";
import type { MicroBatch } from "../src/data/mod.ts";
import { getModule } from "../src/models/registry.ts";
import { initializeOptimizer, initializeTrainer } from "../src/train/initialize.ts";
import { initializeModel } from "../src/train/model.ts";
import { exportTensor, importWeights, norm } from "../src/train/weights.ts";
import { readGoldenJson } from "./golden_dir.ts";
import { earlierDefaults, goldenWeights } from "./golden_models.ts";
import { messageOf, skip } from "./skip.ts";

interface Input {
  input_ids: number[][];
  labels: number[][];
  /** Packed rows only. */
  cu_seqlens?: number[][];
}
interface Run {
  name: string;
  packed: boolean;
  use_flash_attn: boolean;
  extra_config: Record<string, unknown>;
  label_smoothing: number;
  loss: number;
  logits_shape: number[];
  /** The first and the last row. */
  logits_first_last_rows?: [number[], number[]];
  logits_sum?: number;
  logits_norm?: number;
  /** Norm of each tensor's gradient, then its first three numbers. */
  grad_norm_and_first3: Record<string, number[]>;
}
interface GoldenModel {
  model_type: string;
  config: Record<string, unknown>;
  runs: Run[];
  file: string;
}
const golden = readGoldenJson<{ packed_input: Input; batch_input: Input; models: GoldenModel[] }>(
  "internevo",
  "models",
  "model_numerics.json",
);

/** One micro-batch: a packed row, or rows end to end. */
function microBatchOf({ input_ids, labels, cu_seqlens }: Input): MicroBatch {
  const length = input_ids[0].length;
  const bounds = cu_seqlens?.[0] ?? Array.from({ length: input_ids.length + 1 }, (_, row) => row * length);
  const segments = bounds.slice(1).map((end, index) => [bounds[index], end] as const);
  const perToken = (of: (start: number, end: number, token: number) => number) =>
    Uint32Array.from(
      segments.flatMap(([start, end]) => Array.from({ length: end - start }, (_, i) => of(start, end, start + i))),
    );
  return {
    inputIds: Uint32Array.from(input_ids.flat()),
    labels: Int32Array.from(labels.flat()),
    positions: perToken((start, _, token) => token - start),
    segmentStart: perToken((start) => start),
    segmentEnd: perToken((_, end) => end),
    typeIds: perToken(() => 0),
    segments: segments.length,
    longestSegment: Math.max(...segments.map(([start, end]) => end - start)),
  };
}

function recordOf(
  { model_type, config }: GoldenModel,
  { extra_config, use_flash_attn, label_smoothing }: Run,
  input: Input,
) {
  return resolveConfig({
    model_type,
    model: { ...earlierDefaults[model_type], ...config, use_flash_attn, ...extra_config },
    loss: { label_smoothing },
    data: { seq_len: input.input_ids[0].length, micro_bsz: input.input_ids.length, micro_num: 1, total_steps: 1 },
    adam: { lr: 1e-3 },
    ckpt: { enable_save_ckpt: false },
  });
}

/**
 * What a run should give. InternEvo's multi-head attention without flash attention, on unpacked rows in `float32`, reads
 * rotary values that it has overwritten; there the run with flash attention says what is right.
 */
function expectedOf(model: GoldenModel, run: Run): Run | undefined {
  const multiHead = (model.config.num_kv_attention_heads ?? model.config.num_attention_heads) ===
    model.config.num_attention_heads;
  if (!multiHead || run.use_flash_attn || run.packed) return run;
  return model.runs.find((other) =>
    other.use_flash_attn && !other.packed && other.label_smoothing === run.label_smoothing &&
    JSON.stringify(other.extra_config) === JSON.stringify(run.extra_config)
  );
}

/** The reference is `float32` itself: absolute, and relative to the largest value. */
const limit = (expected: ArrayLike<number>) => {
  let largest = 0;
  for (let i = 0; i < expected.length; i++) largest = Math.max(largest, Math.abs(expected[i]));
  return 1e-5 * Math.max(1, largest);
};

function assertClose(actual: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  assertEquals(actual.length, expected.length, `${what}: length`);
  const allowed = limit(expected);
  for (let i = 0; i < expected.length; i++) {
    const error = Math.abs(actual[i] - expected[i]);
    assert(error <= allowed, `${what}[${i}]: ${actual[i]} instead of ${expected[i]}`);
  }
}

for (const model of golden.models) {
  for (const run of model.runs) {
    const title = `${model.model_type} computes as model_numerics.json ${run.name}`;
    const input = run.packed ? golden.packed_input : golden.batch_input;
    const expected = expectedOf(model, run);
    const reason = messageOf(() => recordOf(model, run, input)) ??
      (expected ? undefined : "the reference is faulty there, and there is no run with flash attention to go by");
    if (reason) skip(title, reason);
    else Deno.test(title, () => compare(model, run, expected!, input));
  }
}

async function compare(golden: GoldenModel, run: Run, expected: Run, input: Input): Promise<void> {
  using backend = await openBackend("cpu");
  const record = recordOf(golden, run, input);
  const model = await initializeModel(record, { backend });
  using trainer = initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
  const mappings = getModule(golden.model_type).internEvo!.tensors(record.model);
  using weights = goldenWeights(golden.file, "weight/");
  importWeights(model, mappings, weights);
  using whole = goldenWeights(golden.file);

  const microBatch = microBatchOf(input), vocabulary = record.model.vocab_size;
  const { microBatches: [{ logits }] } = await trainer.evaluate([microBatch], { logits: true });
  assertEquals(logits!.length, expected.logits_shape.reduce((product, size) => product * size, 1));
  if (whole.has(`logits/${expected.name}`)) {
    assertClose(logits!, whole.readFloat32(`logits/${expected.name}`), "logits");
  }
  if (expected.logits_first_last_rows) {
    const [first, last] = expected.logits_first_last_rows;
    assertClose(logits!.subarray(0, vocabulary), first, "first row of logits");
    assertClose(logits!.subarray(-vocabulary), last, "last row of logits");
    assertClose([norm(logits!)], [expected.logits_norm!], "norm of logits");
    // A sum of thousands of numbers: their errors add up like their squares.
    const sum = logits!.reduce((total, value) => total + value, 0);
    assert(Math.abs(sum - expected.logits_sum!) <= 1e-5 * norm(logits!), `sum of logits: ${sum}`);
  }

  trainer.zeroGrad();
  const { loss } = await trainer.executeSchedule({ microBatches: [microBatch] });
  assertClose([loss], [expected.loss], "loss");
  assertEquals(mappings.map(({ tensor }) => tensor).sort(), Object.keys(expected.grad_norm_and_first3).sort());
  for (const mapping of mappings) {
    const gradient = await exportTensor(model, mapping, "gradient");
    const [length, ...first] = expected.grad_norm_and_first3[mapping.tensor];
    assertClose([norm(gradient), ...gradient.subarray(0, 3)], [length, ...first], `gradient of ${mapping.tensor}`);
    const name = `grad/${expected.name}/${mapping.tensor}`;
    if (whole.has(name)) assertClose(gradient, whole.readFloat32(name), `gradient of ${mapping.tensor}`);
  }
}
