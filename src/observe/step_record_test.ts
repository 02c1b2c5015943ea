import { assertAlmostEquals, assertEquals } from "@std/assert";
import { recordLine, stepRecord, type StepRecordInput, validationRecord } from "./step_record.ts";
import { TgsStatistic } from "./tgs_statistic.ts";

const input: StepRecordInput = {
  step: 7,
  loss: 3.5,
  moeLoss: 0.5,
  work: { seqLen: 8, globalBatchSize: 4 },
  seconds: 0.5,
  secondsSinceStart: 2,
  worldSize: 4,
  dataParallelSize: 2,
  tokens: 64,
  realTokens: 101,
  learningRate: 1e-3,
  lossScale: 1,
  gradNorm: { "0_default": 1.5, "1_fp32": 0 },
  numConsumedTokens: 1024,
  infNanSkipBatches: 1,
  cuSeqlens: [[0, 5, 13, 16], Int32Array.of(0, 16)],
  adamBeta2: 0.95,
  forwardBackwardSeconds: 0.256,
  backwardSeconds: 0.124,
  metrics: { acc: 0.25 },
};

Deno.test("stepRecord() derives counts and speeds from the batch", () => {
  const { tflops, ...record } = stepRecord(input, new TgsStatistic());
  assertAlmostEquals(
    tflops as number,
    (3 * 32 * 32 * 144 * 32 + 3 * 4 * 32 * 8 * 12 * 32 + 6 * 32 * 144) / 2e12,
    1e-18,
  );
  assertEquals(record, {
    step: 7,
    loss: 3,
    real_tgs: 52, // ceil(101 / 4) / 0.5
    "tgs (tokens/gpu/second)": 64,
    "tgs/last_tgs_1": 64,
    "tgs/tgs_all": 16,
    "tgs/tgs_avg": 64,
    "tgs/tgs_SMA": 64,
    "tgs/last_tgs_10": 0,
    "tgs/last_tgs_50": 0,
    lr: 1e-3,
    loss_scale: 1,
    grad_norm: { "0_default": 1.5, "1_fp32": 0 },
    moe_loss: 0.5,
    micro_num: 2,
    num_consumed_tokens: 1024,
    inf_nan_skip_batches: 1,
    num_samples_in_batch: 4,
    largest_length: 16,
    largest_batch: 3,
    smallest_batch: 1,
    adam_beta2: 0.95,
    fwd_bwd_time: 0.26,
    bwd_time: 0.12,
    acc: 0.25,
  });
});

Deno.test("TgsStatistic averages over a moving window and over whole blocks", () => {
  const tgs = new TgsStatistic();
  let elapsed = 0;
  for (let step = 1; step <= 59; step++) {
    const seconds = step <= 9 ? 1 : 2; // the first nine leave the window of 50
    elapsed += seconds;
    tgs.update({ tokensPerDevice: 100, seconds, secondsSinceStart: elapsed + 10 });
  }
  assertEquals(tgs.report(), {
    "tgs/last_tgs_1": 50,
    "tgs/tgs_all": 49.58, // 5900 / 119
    "tgs/tgs_avg": 57.63, // (9 · 100 + 50 · 50) / 59
    "tgs/tgs_SMA": 50,
    "tgs/last_tgs_10": 50, // steps 41 to 50
    "tgs/last_tgs_50": 54.95, // 5000 / 91
  });
});

Deno.test("recordLine() writes key=value pairs in order", () => {
  const record = validationRecord("en", { stepCount: 4, loss: 2, acc: 0.5, perplexity: 7.4 });
  assertEquals(recordLine(record), "step=4 val/en_loss=2 val/en_acc=0.5 val/en_plex=7.4 ");
});
