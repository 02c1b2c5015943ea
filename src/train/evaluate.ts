/** Evaluation: forward passes over validation sets. */
import type { ValidationLoader } from "../data/mod.ts";
import { AccPerplex } from "../observe/metrics.ts";
import type { Trainer } from "./trainer.ts";

export interface SetResult {
  readonly name: string;
  /** Mean of the batches' losses, each the mean of its micro-batches'. */
  readonly loss: number;
  readonly acc: number;
  readonly perplexity: number;
}

/**
 * Evaluates every set; one that has no batch on any rank is left out. Ranks evaluate different batches.
 */
export async function evaluateSets(
  trainer: Trainer,
  loaders: readonly ValidationLoader[],
  { onBatch, sum: sumOverRanks = (values) => Promise.resolve([...values]) }: {
    /** Called before each batch with how many were, of how many in all sets: a sign of life. */
    readonly onBatch?: ((done: number, of: number) => void) | undefined;
    /** Sums values over all ranks. @default a rank by itself */
    readonly sum?: (values: readonly number[]) => Promise<number[]>;
  } = {},
): Promise<SetResult[]> {
  const results: SetResult[] = [], of = loaders.reduce((total, { length }) => total + length, 0);
  let done = 0;
  for (const loader of loaders) {
    const metric = new AccPerplex();
    let sum = 0, batches = 0;
    for (const batch of loader.batches()) {
      onBatch?.(done++, of);
      const { loss, microBatches } = await trainer.evaluate(batch);
      for (const { nll, correct, microBatch: { labels } } of microBatches) metric.add({ nll, correct, labels });
      sum += loss;
      batches++;
    }
    const [lossSum, batchCount, ...counts] = await sumOverRanks([sum, batches, ...metric.state()]);
    if (batchCount === 0) continue;
    metric.reset();
    metric.merge(counts);
    const { acc, perplexity } = metric.report() as Record<string, number>;
    results.push({ name: loader.name, loss: lossSum! / (batchCount! + 1e-6), acc: acc!, perplexity: perplexity! });
  }
  return results;
}
