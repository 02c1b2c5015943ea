/**
 * Who owns which part of the optimizer state, and which gradients are reduced together. All of it follows from shapes
 * alone, so that every rank comes to the same answer without a word.
 */

const total = (counts: readonly number[]) => counts.reduce((sum, count) => sum + count, 0);

function checkRanks(ranks: number): void {
  if (!(Number.isSafeInteger(ranks) && ranks >= 1)) {
    throw new RangeError(`Cannot divide optimizer state over ${ranks} ranks: at least 1 is needed`);
  }
}

/** Parameters by falling element count; equal ones keep their order. */
export function flatteningOrder(counts: readonly number[]): number[] {
  return counts.map((_, index) => index).sort((a, b) => counts[b]! - counts[a]! || a - b);
}

/**
 * Whole parameters over ranks: largest first, each to the rank that has fewest elements so far, the lowest of equals.
 * A rank may own nothing.
 *
 * @param counts elements of each parameter
 * @returns for each rank the parameters it owns, in the order in which they are flattened
 *
 * @example
 * ```ts
 * import { partitionBySize } from "./zero_partition.ts";
 * console.assert(JSON.stringify(partitionBySize([3, 10, 4], 2)) === "[[1],[2,0]]");
 * ```
 */
export function partitionBySize(counts: readonly number[], ranks: number): number[][] {
  checkRanks(ranks);
  const owned: number[][] = Array.from({ length: ranks }, () => []), loads = new Array<number>(ranks).fill(0);
  for (const index of flatteningOrder(counts)) {
    let rank = 0;
    for (let other = 1; other < ranks; other++) if (loads[other]! < loads[rank]!) rank = other;
    owned[rank]!.push(index);
    loads[rank]! += counts[index]!;
  }
  return owned;
}

/** How far above an even share a rank may go before the next one takes over. */
const blockSlack = 1.01;

/**
 * Whole parameters over ranks in the order of the model's blocks, so that a rank owns neighbouring blocks and what it
 * sends out after an update (`overlap_sync_param`) arrives in the order in which the forward pass needs it.
 *
 * @param counts elements of each parameter, in the order of the blocks
 */
export function partitionByBlocks(counts: readonly number[], ranks: number): number[][] {
  checkRanks(ranks);
  const limit = blockSlack * Math.floor(total(counts) / ranks);
  const owned: number[][] = Array.from({ length: ranks }, () => []);
  let rank = 0, load = 0;
  counts.forEach((count, index) => {
    if (load + count > limit && load > 0 && rank < ranks - 1) {
      rank++;
      load = 0;
    }
    owned[rank]!.push(index);
    load += count;
  });
  return owned;
}

/** Gradients that are reduced at once. */
export interface Reduction {
  readonly group: number;
  /** Indices of parameters within the group. */
  readonly parameters: readonly number[];
  readonly elements: number;
}

/**
 * Fills one bucket per group in the order in which gradients come, reduces a bucket before it would grow beyond
 * `bucketSize`, and what is left at the end, group by group. A parameter larger than a bucket is reduced alone.
 *
 * @param groups elements of each gradient, per group
 * @param bucketSize `reduce_bucket_size`, in elements
 *
 * @example
 * ```ts
 * import { planReductions } from "./zero_partition.ts";
 * const [first, second] = planReductions([[6, 2, 5]], 10);
 * console.assert(first!.elements === 8 && second!.elements === 5);
 * ```
 */
export function planReductions(groups: readonly (readonly number[])[], bucketSize: number): Reduction[] {
  if (!(bucketSize >= 1)) {
    throw new RangeError(`Cannot fill buckets: reduce_bucket_size must be 1 element or more, found ${bucketSize}`);
  }
  const reductions: Reduction[] = [], left: Reduction[] = [];
  groups.forEach((counts, group) => {
    let parameters: number[] = [], elements = 0;
    counts.forEach((count, index) => {
      if (elements + count > bucketSize && parameters.length > 0) {
        reductions.push({ group, parameters, elements });
        parameters = [];
        elements = 0;
      }
      parameters.push(index);
      elements += count;
    });
    if (parameters.length > 0) left.push({ group, parameters, elements });
  });
  return [...reductions, ...left];
}
