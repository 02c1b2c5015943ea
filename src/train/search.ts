/** Tries layouts of one model on one set of machines, and ranks those that fit. */
import { parallelSizes, type ResolvedConfig } from "../config/mod.ts";
import type { Machines } from "./charge.ts";
import { type PlanCache, predict, type Prediction } from "./predict.ts";

export interface Candidate {
  /** Fields of the record that make it, as `section.field=value`. */
  readonly set: readonly string[];
  readonly config: ResolvedConfig;
}

export interface Ranked extends Candidate {
  readonly prediction: Prediction;
}

export interface SearchResult {
  /** Layouts that fit, the quickest first. */
  readonly fitting: readonly Ranked[];
  /** Layouts that do not: the one that lacks least first. */
  readonly tooLarge: readonly Ranked[];
  /** Why others were not tried, and how many for each reason. */
  readonly refused: readonly { readonly reason: string; readonly layouts: number }[];
}

const powersOfTwo = (most: number): number[] => {
  const powers: number[] = [];
  for (let power = 1; power <= most; power *= 2) powers.push(power);
  return powers;
};

/**
 * The layouts worth trying: tensor sizes inside one machine, stages, and each schedule. The global batch stays: with more
 * stages there are fewer replicas, hence more micro-batches on each.
 */
export function layoutsOf(
  config: ResolvedConfig,
  { world, perHost = 8 }: Pick<Machines, "world" | "perHost">,
): string[][] {
  const { model, data } = config, rows = parallelSizes(config, world).dp * data.micro_num;
  const sets: string[][] = [];
  for (const tensor of powersOfTwo(Math.min(perHost, model.num_attention_heads))) {
    for (const stages of powersOfTwo(Math.min(model.num_layers, 32))) {
      const replicas = world / (tensor * stages), microBatches = rows / replicas;
      if (!Number.isInteger(replicas) || !Number.isInteger(microBatches) || microBatches < 1) continue;
      const schedules: string[][] = [["parallel.pipeline.schedule=1f1b", "model.num_chunks=1"]];
      if (stages > 1) {
        schedules.push(["parallel.pipeline.schedule=zbh1", "model.num_chunks=1"]);
        if (model.num_layers % (2 * stages) === 0 && microBatches % stages === 0) {
          schedules.push([
            "parallel.pipeline.schedule=interleaved",
            "model.num_chunks=2",
            "parallel.pipeline.interleaved_overlap=true",
          ]);
        }
      }
      for (const schedule of schedules) {
        sets.push([
          `parallel.tensor.size=${tensor}`,
          `parallel.pipeline.size=${stages}`,
          "parallel.pipeline.mode=1F1B",
          ...schedule,
          `data.micro_num=${microBatches}`,
        ]);
      }
    }
  }
  return sets;
}

/**
 * Predicts layouts; one that does not fit is tried again with all activations recomputed, which is slower and smaller.
 *
 * @param sets layouts to try, each as fields of the record
 * @param resolve the record with these fields; throws where they do not go together
 * @param onTried told after each layout, for progress
 */
export function search(
  sets: readonly (readonly string[])[],
  machines: Machines,
  { resolve, onTried }: {
    readonly resolve: (set: readonly string[]) => ResolvedConfig;
    readonly onTried?: (done: number, all: number) => void;
  },
): SearchResult {
  const cache: PlanCache = new Map(), refused = new Map<string, number>(), ranked: Ranked[] = [];
  const attempt = (set: readonly string[]): Ranked | undefined => {
    try {
      const config = resolve(set);
      return { set, config, prediction: predict(config, machines, { cache }) };
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      const reason = error.message.split("\n").at(-1)!.trim();
      refused.set(reason, (refused.get(reason) ?? 0) + 1);
    }
  };
  sets.forEach((set, index) => {
    let found = attempt(set);
    if (found && !found.prediction.fits && found.config.model.checkpoint < 1) {
      found = attempt([...set, "model.checkpoint=1"]) ?? found;
    }
    if (found) ranked.push(found);
    onTried?.(index + 1, sets.length);
  });
  return {
    fitting: ranked.filter(({ prediction }) => prediction.fits)
      .sort((a, b) => b.prediction.tokensPerSecond - a.prediction.tokensPerSecond),
    tooLarge: ranked.filter(({ prediction }) => !prediction.fits)
      .sort((a, b) => a.prediction.memory - b.prediction.memory),
    refused: [...refused].map(([reason, layouts]) => ({ reason, layouts })),
  };
}

/** Parts of a step in which one layout differs from another, the largest first, in seconds: more than a hundredth of it. */
export function differences({ parts, step }: Prediction, other: Prediction): [keyof Prediction["parts"], number][] {
  const names = Object.keys(parts) as (keyof Prediction["parts"])[];
  return names.map((name) => [name, other.parts[name] - parts[name]] as [typeof name, number])
    .filter(([, seconds]) => Math.abs(seconds) > step / 100)
    .sort(([, a], [, b]) => Math.abs(b) - Math.abs(a));
}
