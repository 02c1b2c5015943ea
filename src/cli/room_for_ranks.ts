/** Whether this machine holds the ranks that it is to start: found out before a thousand processes take all of its memory. */
import { formatBytes } from "../observe/format.ts";
import { ArgumentError } from "./parser.ts";

/** What a rank's process takes for itself alone at the least, in bytes: 135 MiB were measured with next to no model. */
const leastPerRank = 100 * 2 ** 20;

/**
 * @param free bytes of memory that are to be had
 * @throws {ArgumentError} where the ranks' processes alone take more
 *
 * @example
 * ```ts
 * import { requireRoomForRanks } from "./room_for_ranks.ts";
 * requireRoomForRanks(8, 2 ** 30);
 * ```
 */
export function requireRoomForRanks(ranks: number, free: number = freeMemory()): void {
  const most = Math.max(1, Math.floor(free / leastPerRank));
  if (ranks <= most) return;
  throw new ArgumentError(
    `--nproc (runtime.nproc): ${ranks} processes take ${
      formatBytes(ranks * leastPerRank)
    } of memory before they hold a model, and ` +
      `this machine has ${formatBytes(free)} free; ${most} could start, and a rank for each GPU is what is fast`,
  );
}

/** Bytes of memory that are to be had. */
export function freeMemory(): number {
  const { available, swapFree } = Deno.systemMemoryInfo();
  return available + swapFree;
}
