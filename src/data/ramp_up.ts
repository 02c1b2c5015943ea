/** How many rows a batch has while the batch size still grows (`rampup_batch_size`). */

export interface RampUp {
  readonly start: number;
  readonly increment: number;
  readonly every: number;
}

/**
 * Parses "start increment every"; nothing is full batches from the beginning. Throws `RangeError` for anything else.
 *
 * @param batchSize `micro_num`: rows of one rank in a full batch
 */
export function parseRampUp(text: string | null | undefined, batchSize: number): RampUp {
  if (!text) return { start: batchSize, increment: batchSize, every: 1 };
  const numbers = text.trim().split(/\s+/).map(Number);
  const [start, increment, every] = numbers;
  if (numbers.length !== 3 || !numbers.every((value) => Number.isInteger(value) && value > 0)) {
    throw new RangeError(
      `data.rampup_batch_size: "${text}" is not three positive integers "start increment every"; "1 1 100" would work`,
    );
  }
  if (start > batchSize) {
    throw new RangeError(
      `data.rampup_batch_size: the start ${start} of "${text}" is above data.micro_num (${batchSize})`,
    );
  }
  return { start, increment, every };
}

/** Rows of one rank in batch `count`, counted from 0. */
export function rowsOfBatch({ start, increment, every }: RampUp, batchSize: number, count: number): number {
  return Math.min(Math.floor(count / every) * increment + start, batchSize);
}
