/** Reported figures against InternEvo's: work of a step, accuracy and perplexity, the step record. */
import { assert, assertEquals } from "@std/assert";
import { getMegatronFlops } from "../src/observe/flops.ts";
import { AccPerplex } from "../src/observe/metrics.ts";
import { stepRecord } from "../src/observe/step_record.ts";
import { TgsStatistic } from "../src/observe/tgs_statistic.ts";
import { goldenPath, readGoldenJson } from "./golden_dir.ts";

interface Round {
  type_ids: number[][] | null;
  micro_batches: { logits: number[][][]; labels: number[][] }[];
  accumulators: { right: number; total: number; total_log_probs: number };
  metric: Record<string, number | string>;
}
const golden = readGoldenJson<{
  megatron_flops: { args: Record<string, number | boolean>; tflops: number }[];
  acc_perplex: { dataset_types: string[] | null; result?: Round[]; error?: string; message?: string }[];
}>("internevo", "metrics.json");

golden.megatron_flops.forEach(({ args, tflops }, index) => {
  Deno.test(`getMegatronFlops() follows metrics.json megatron_flops[${index}]`, () => {
    const names: Record<string, string> = {
      elapsed_time_per_iter: "secondsPerStep",
      global_world_size: "worldSize",
    };
    const camel = (name: string) =>
      names[name] ?? name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
    const options = Object.fromEntries(Object.entries(args).map(([name, value]) => [camel(name), value]));
    const actual = getMegatronFlops(options as unknown as Parameters<typeof getMegatronFlops>[0]);
    assert(Math.abs(actual - tflops) <= 1e-13 * tflops, `${actual} instead of ${tflops}`);
  });
});

/** What the loss kernel leaves on the host, from logits [rows][tokens][vocabulary]. */
function tokenResults(logits: number[][][], labels: number[][], typeIds: number[] | undefined) {
  const rows = logits.flat();
  const flat = labels.flat();
  const nll = rows.map((row, i) => {
    const largest = Math.max(...row);
    const sum = row.reduce((total, logit) => total + Math.exp(logit - largest), 0);
    return flat[i] < 0 ? 0 : largest + Math.log(sum) - row[flat[i]];
  });
  return {
    nll: Float32Array.from(nll),
    correct: Uint32Array.from(rows, (row, i) => Number(row.indexOf(Math.max(...row)) === flat[i])),
    labels: Int32Array.from(flat),
    ...(typeIds ? { typeIds: Uint32Array.from(typeIds) } : {}),
  };
}

golden.acc_perplex.forEach((entry, index) => {
  Deno.test(`AccPerplex follows metrics.json acc_perplex[${index}]`, () => {
    if (!entry.result) {
      console.log(`  skipped: InternEvo fails there: ${entry.error} ${entry.message}`);
      return;
    }
    const typeNames = entry.dataset_types ?? [];
    const metric = new AccPerplex({ typeNames });
    for (const round of entry.result) {
      // The micro-batches go to two ranks in turn, whose sums are then added.
      const ranks = [metric, new AccPerplex({ typeNames })];
      // Types come in rows of their own shape; in order they match the tokens of the micro-batches.
      const types = round.type_ids?.flat();
      let at = 0;
      round.micro_batches.forEach(({ logits, labels }, i) => {
        const count = labels.flat().length;
        ranks[i % 2].add(tokenResults(logits, labels, types?.slice(at, at + count)));
        at += count;
      });
      metric.merge(ranks[1].state());
      const [right, total, nll] = metric.state();
      const sums = round.accumulators;
      assertEquals([right, total], [sums.right, sums.total]);
      assert(Math.abs(nll - sums.total_log_probs) <= 1e-5 * Math.abs(sums.total_log_probs), `Σ nll ${nll}`);
      assertReport(metric.report(), round.metric);
      metric.reset();
    }
  });
});

function assertReport(actual: Record<string, number>, expected: Record<string, number | string>): void {
  assertEquals(Object.keys(actual), Object.keys(expected));
  for (const [key, value] of Object.entries(expected)) {
    if (value === "nan") assert(Number.isNaN(actual[key]), `${key}: ${actual[key]} instead of nan`);
    else if (key.startsWith("tokens/")) assertEquals(actual[key], value, key);
    else {
      // float32 sums may fall on the other side of a rounding step.
      const limit = 1.001e-4 + 2e-6 * Math.abs(Number(value));
      assert(Math.abs(actual[key] - Number(value)) <= limit, `${key}: ${actual[key]} instead of ${value}`);
    }
  }
}

interface LoggedStep {
  batch_count: number;
  cu_seqlens: number[][];
  logged: Record<string, number | Record<string, number>>;
}
const trainRun = ["internevo", "models", "train_run.json"];
const runs = fileExists(goldenPath(...trainRun))
  ? readGoldenJson<{ runs: { name: string; steps: LoggedStep[] }[] }>(...trainRun).runs
  : [];
for (const run of runs) {
  Deno.test(`stepRecord() counts and orders as train_run.json ${run.name}`, () => {
    const tgs = new TgsStatistic();
    for (const { batch_count, cu_seqlens, logged } of run.steps) {
      if (!logged || !cu_seqlens) continue; // an unsuccessful update is not recorded
      const number = (key: string) => Number(logged[key]);
      const metricKeys = Object.keys(logged).slice(Object.keys(logged).indexOf("adam_beta2") + 1);
      const record = stepRecord({
        step: batch_count,
        loss: number("loss"),
        work: {},
        seconds: 0.5,
        secondsSinceStart: 0.5 * (batch_count + 1),
        worldSize: 1,
        dataParallelSize: 1,
        tokens: 32,
        realTokens: 30,
        learningRate: number("lr"),
        lossScale: number("loss_scale"),
        gradNorm: logged.grad_norm as Record<string, number>,
        numConsumedTokens: number("num_consumed_tokens"),
        infNanSkipBatches: number("inf_nan_skip_batches"),
        cuSeqlens: cu_seqlens,
        adamBeta2: number("adam_beta2"),
        forwardBackwardSeconds: 0.25,
        backwardSeconds: 0.125,
        metrics: Object.fromEntries(metricKeys.map((key) => [key, logged[key] as number])),
      }, tgs);
      assertEquals(Object.keys(record).filter((key) => key in logged), Object.keys(logged));
      for (const key of Object.keys(logged)) assertEquals(record[key], logged[key], `${key} of step ${batch_count}`);
    }
  });
}

function fileExists(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
    console.log(`  skipped: the step record needs ${path}`);
    return false;
  }
}
