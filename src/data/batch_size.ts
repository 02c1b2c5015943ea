/** The size of a batch, when a run goes on with another number of data-parallel ranks. */
import type { DataPosition } from "./batch.ts";

/** `micro_num` and the number of ranks over which it counts: their product is the rows of a full batch. */
export interface BatchSize {
  readonly batchSize: number;
  readonly referenceWorldSize: number;
}

/**
 * What a run goes on with from a position. On as many ranks as before `micro_num` may be another. On more or fewer the
 * batch stays as it was, whether the record has the `micro_num` that it had (the same command on other devices) or the
 * one that makes the same batch on the ranks there are now.
 *
 * @throws {RangeError} where neither is so: which batch is wanted, nobody could tell
 */
export function batchSizeFrom(
  { batch_size: was, data_world_size: ranks }: Pick<DataPosition, "batch_size" | "data_world_size">,
  now: { readonly microNum: number; readonly dataWorldSize: number },
): BatchSize {
  const { microNum, dataWorldSize } = now, rows = was * ranks;
  if (dataWorldSize === ranks) return { batchSize: microNum, referenceWorldSize: ranks };
  if (microNum === was || microNum * dataWorldSize === rows) return { batchSize: was, referenceWorldSize: ranks };
  const whole = rows / dataWorldSize, other = Number.isInteger(whole) ? `, and so would ${whole}` : "";
  throw new RangeError(
    `A batch of the saved run has ${rows} rows (data.micro_num: ${was} on ${ranks} data-parallel ranks), and ` +
      `data.micro_num: ${microNum} on ${dataWorldSize} makes ${
        microNum * dataWorldSize
      }. data.micro_num: ${was} would ` +
      `work: the same batches are dealt to the ranks there are${other}; for another batch, resume once on ${ranks}`,
  );
}
