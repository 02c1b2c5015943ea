/**
 * Where rows go when tokens meet experts on other ranks: bookkeeping of uneven all-to-alls, on the host. It follows from
 * counts that are data, so it is made anew each time.
 */
import type { Exchange } from "./graph.ts";

/** A run of rows: from the one place to the other. */
export interface Run {
  readonly from: number;
  readonly into: number;
  readonly rows: number;
}

export interface Routes {
  /** Rows to and from each rank. */
  readonly sent: readonly number[];
  readonly received: readonly number[];
  /** How rows are brought in the order of ranks before they go; absent: they stand so. */
  readonly gather?: readonly Run[];
  /** How rows are put in their places after they came; absent: they came so. */
  readonly spread?: readonly Run[];
}

/**
 * @param counts rows that this rank's tokens have at each expert `[experts]`; rows that this rank's experts have of each
 * rank `[ranks, own experts]`
 * @throws {RangeError} where more rows come to this rank than there is room for, with the setting that says so
 */
export function routesOf(
  { direction, room }: Exchange,
  [count, table]: readonly [Uint32Array, Uint32Array],
  { ranks: { length: ranks }, index }: { readonly ranks: readonly number[]; readonly index: number },
): Routes {
  const experts = count.length / ranks;
  const perRank = (counts: Uint32Array) =>
    Array.from({ length: ranks }, (_, rank) => {
      let rows = 0;
      for (let e = rank * experts; e < (rank + 1) * experts; e++) rows += counts[e]!;
      return rows;
    });
  const atTokens = perRank(count), atExperts = perRank(table);
  const load = atExperts.reduce((total, rows) => total + rows, 0),
    tokens = atTokens.reduce((all, rows) => all + rows, 0);
  if (load > room) {
    throw new RangeError(
      `Cannot exchange tokens with experts: ${load} rows come to the experts of rank ${index} of the expert group, and ` +
        `there is room for ${room}; parallel.expert.load_bound ${
          Math.ceil(10 * load / tokens) / 10
        }, or null for room ` +
        "for all that can come, would work",
    );
  }
  // Rows as they travel stand by rank and expert, as they lie by expert and rank.
  const blocks: { travelling: number; lying: number; rows: number }[] = [];
  const lying = new Array<number>(ranks * experts);
  for (let e = 0, at = 0; e < experts; e++) {
    for (let rank = 0; rank < ranks; rank++) {
      lying[rank * experts + e] = at;
      at += table[rank * experts + e]!;
    }
  }
  for (let block = 0, at = 0; block < ranks * experts; block++) {
    const rows = table[block]!;
    if (rows > 0) blocks.push({ travelling: at, lying: lying[block]!, rows });
    at += rows;
  }
  return direction === "to experts"
    ? {
      sent: atTokens,
      received: atExperts,
      spread: blocks.map(({ travelling, lying, rows }) => ({ from: travelling, into: lying, rows })),
    }
    : {
      sent: atExperts,
      received: atTokens,
      gather: blocks.map(({ travelling, lying, rows }) => ({ from: lying, into: travelling, rows })),
    };
}

/** Moves runs of rows of so many bytes each. */
export function move(from: Uint8Array, into: Uint8Array, runs: readonly Run[], row: number): void {
  for (const run of runs) into.set(from.subarray(run.from * row, (run.from + run.rows) * row), run.into * row);
}
