/**
 * Mixtures (`data.mixture`): which folder each row of a run comes from, by weights. The choice is a function of the row's
 * number among all rows that all ranks have consumed, so that this number stays the whole position, whatever the ranks.
 *
 * Rows are dealt in blocks: each block has as many of a folder as brings the folder closest to its share of all rows so
 * far, in an order drawn from the seed and the block's number. No folder is ever more than a row per folder from its share
 * at the end of a block.
 */
import { mixSeeds } from "./mix_seeds.ts";
import { RandomState } from "./mt19937.ts";
import { parseRampUp, type RampUp, rowsOfBatch } from "./ramp_up.ts";
import type { IndexBatch } from "./static_batch_sampler.ts";

export interface MixedFolder {
  readonly name: string;
  /** Of all rows, from 0 to 1. */
  readonly share: number;
}

/** Rows dealt together. */
const blockRows = 1024;

/**
 * Folders of weight above 0 with their shares, in the order of their names. Throws `RangeError` for a name that is not
 * among `names`, and where no weight is above 0.
 */
export function parseMixture(mixture: Readonly<Record<string, number>>, names: readonly string[]): MixedFolder[] {
  for (const [name, weight] of Object.entries(mixture)) {
    if (!names.includes(name)) {
      throw new RangeError(`data.mixture names "${name}", which is no folder of the data; ${names.join(", ")} are`);
    }
    if (!(weight >= 0 && Number.isFinite(weight))) {
      throw new RangeError(`data.mixture: the weight of "${name}" is ${weight}; a number from 0 on would work`);
    }
  }
  const total = Object.values(mixture).reduce((sum, weight) => sum + weight, 0);
  if (total === 0) throw new RangeError(`data.mixture has no weight above 0; {${names[0] ?? "en"}: 1} would work`);
  return names.filter((name) => (mixture[name] ?? 0) > 0).map((name) => ({ name, share: mixture[name]! / total }));
}

/** What must stay for a run to go on. */
export const describeMixture = (folders: readonly MixedFolder[]): string =>
  folders.map(({ name, share }) => `${name} ${Number(share.toPrecision(12))}`).join(", ");

/**
 * @example
 * ```ts
 * import { createMixer } from "./mixture.ts";
 * const mixer = createMixer([0.75, 0.25], 1024);
 * const sources = Array.from({ length: 1024 }, (_, row) => mixer.at(row).source);
 * console.assert(sources.filter((source) => source === 1).length === 256);
 * ```
 */
export function createMixer(shares: readonly number[], seed: number): {
  /** The folder that row `row` comes from, and how many of its rows come before. */
  at(row: number): { readonly source: number; readonly index: number };
} {
  let block = -1;
  /** Rows of each folder before the block. */
  let before = shares.map(() => 0), counts = shares.map(() => 0);
  let sources = new Uint32Array(0), indices = new Float64Array(0);

  const countsOf = (block: number, before: readonly number[]): number[] => {
    const wanted = shares.map((share, i) => share * (block + 1) * blockRows - before[i]!);
    const counts = wanted.map((rows) => Math.max(0, Math.floor(rows)));
    let missing = blockRows - counts.reduce((sum, count) => sum + count, 0);
    const byNeed = shares.map((_, i) => i).sort((a, b) =>
      (wanted[b]! - counts[b]!) - (wanted[a]! - counts[a]!) || a - b
    );
    for (let i = 0; missing > 0; i++, missing--) counts[byNeed[i % byNeed.length]!]!++;
    for (let i = byNeed.length - 1; missing < 0; i = (i + byNeed.length - 1) % byNeed.length) {
      if (counts[byNeed[i]!]! > 0) counts[byNeed[i]!]!--, missing++;
    }
    return counts;
  };
  const goTo = (wanted: number) => {
    if (wanted === block) return;
    if (wanted < block || block < 0) {
      block = 0;
      before = shares.map(() => 0);
      counts = countsOf(0, before);
    }
    while (block < wanted) {
      before = before.map((rows, i) => rows + counts[i]!);
      counts = countsOf(++block, before);
    }
    sources = Uint32Array.from(counts.flatMap((count, i) => Array<number>(count).fill(i)));
    new RandomState(mixSeeds(seed, block, 77)).shuffle(sources);
    const next = [...before];
    indices = Float64Array.from(sources, (source) => next[source]!++);
  };
  return {
    at(row) {
      goTo(Math.floor(row / blockRows));
      const place = row % blockRows;
      return { source: sources[place]!, index: indices[place]! };
    },
  };
}

export interface MixtureSamplerOptions {
  /** Of each folder: its share, where its rows begin in the data set, and how many there are. */
  readonly folders: readonly { readonly share: number; readonly start: number; readonly rows: number }[];
  /** `micro_num`. */
  readonly batchSize: number;
  readonly rampupBatchSize?: string | null;
  readonly seed: number;
  readonly dataRank: number;
  readonly dataWorldSize: number;
  readonly referenceWorldSize: number;
}

/**
 * Batches of a mixture. Each folder is gone through again and again, in another order every time; an epoch of the whole
 * counts as many rows as there are.
 */
export class MixtureSampler {
  readonly options: MixtureSamplerOptions;
  readonly referenceWorldSize: number;
  readonly #mixer: ReturnType<typeof createMixer>;
  readonly #ramp: RampUp;
  readonly #rows: number;
  readonly #orders: { round: number; order: Uint32Array }[];
  #batchCount = 0;
  #position = 0;

  constructor(options: MixtureSamplerOptions) {
    this.options = options;
    this.referenceWorldSize = options.referenceWorldSize;
    this.#mixer = createMixer(options.folders.map(({ share }) => share), options.seed);
    this.#ramp = parseRampUp(options.rampupBatchSize, options.batchSize);
    this.#rows = options.folders.reduce((sum, { rows }) => sum + rows, 0);
    this.#orders = options.folders.map(() => ({ round: -1, order: new Uint32Array(0) }));
  }

  /** Batches of an epoch. */
  get length(): number {
    return Math.floor(this.#rows / (this.options.batchSize * this.referenceWorldSize));
  }
  get batchCount(): number {
    return this.#batchCount;
  }
  /** Rows consumed by all ranks since training began. */
  get globalPosition(): number {
    return this.#position;
  }
  get round(): number {
    return Math.floor(Math.max(0, this.#position - 1) / this.#rows);
  }
  get numConsumedSamplesInEpoch(): number {
    return (this.#position - this.round * this.#rows) / this.referenceWorldSize;
  }

  /** The row of the data set that stands at a position. */
  #rowAt(position: number): number {
    const { source, index } = this.#mixer.at(position), { start, rows } = this.options.folders[source]!;
    const round = Math.floor(index / rows), known = this.#orders[source]!;
    if (known.round !== round) {
      known.order = new RandomState(mixSeeds(this.options.seed, source, round)).permutation(rows);
      known.round = round;
    }
    return start + known.order[index % rows]!;
  }

  next(): IndexBatch {
    const { batchSize, dataRank, dataWorldSize } = this.options;
    const globalRows = rowsOfBatch(this.#ramp, batchSize, this.#batchCount++) * this.referenceWorldSize;
    const indices: number[] = [];
    for (let i = dataRank; i < globalRows; i += dataWorldSize) indices.push(this.#rowAt(this.#position + i));
    this.#position += globalRows;
    return { indices: Uint32Array.from(indices), globalRows };
  }

  restore({ batchCount, position }: { batchCount: number; position: number }): void {
    this.#batchCount = batchCount;
    this.#position = position;
  }
}
