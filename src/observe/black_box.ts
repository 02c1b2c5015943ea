/** The black box: what the flight recorders of all ranks told last, merged into one story of who did what, and when. */
import type { FlightRecord } from "./flight_recorder.ts";

/** Records kept of each rank. */
const kept = 256;

export interface BlackBoxContent {
  /** Why it was written, and when: milliseconds since 1970. */
  readonly why: string;
  readonly at: number;
  readonly ranks: readonly { readonly rank: number; readonly attempt: number; readonly records: FlightRecord[] }[];
}

/**
 * @example
 * ```ts
 * import { BlackBox, formatStory } from "./black_box.ts";
 * const box = new BlackBox();
 * box.add(0, 1, [{ at: 1000, text: "all-reduce of data: begun" }]);
 * box.add(1, 1, [{ at: 2000, text: "backward 0 of micro-batch 2" }]);
 * console.assert(formatStory(box.content("asked for")).includes("Rank 0 waited in all-reduce of data"));
 * ```
 */
export class BlackBox {
  readonly #ranks = new Map<number, { attempt: number; records: FlightRecord[] }>();

  /** Takes what a rank told; that of an earlier start is dropped. */
  add(rank: number, attempt: number, records: readonly FlightRecord[]): void {
    const known = this.#ranks.get(rank);
    const before = known?.attempt === attempt ? known.records : [];
    this.#ranks.set(rank, { attempt, records: [...before, ...records].slice(-kept) });
  }

  content(why: string): BlackBoxContent {
    const ranks = [...this.#ranks].map(([rank, { attempt, records }]) => ({ rank, attempt, records }));
    return { why, at: Date.now(), ranks: ranks.sort((a, b) => a.rank - b.rank) };
  }
}

/** A collective that did not come to its end. */
const begun = /^(.*): (?:begun|failed)$/;
/** Ranks tell what they do every second: of shorter waits nothing follows, unless they failed. */
const longMs = 2000;

const clock = (at: number) => new Date(at).toISOString().slice(11, 23);

/**
 * For people: who waited for whom, then everything in the order of time.
 *
 * @param most lines of the second part, the last ones
 */
export function formatStory({ why, at, ranks }: BlackBoxContent, most = 60): string {
  const last = ranks.flatMap(({ rank, records }) => records.length > 0 ? [{ rank, ...records.at(-1)! }] : []);
  const waiting = last.filter(({ text }) => begun.test(text)), busy = last.filter(({ text }) => !begun.test(text));
  const lines = [`${clock(at)}  ${why}`, ""];
  for (const { rank, text, at: since } of waiting) {
    lines.push(`Rank ${rank} waited in ${text.match(begun)![1]} since ${clock(since)}`);
  }
  for (const { rank, text, at: since } of busy) {
    lines.push(`Rank ${rank} was last heard of at ${clock(since)}: ${text}`);
  }
  const inVain = waiting.some(({ text, at: since }) => text.endsWith("failed") || at - since >= longMs);
  if (inVain && busy.length > 0) {
    const who = busy.map(({ rank }) => rank).join(", ");
    lines.push(busy.length === 1 ? `So rank ${who} was waited for.` : `So ranks ${who} were waited for.`);
  }
  const all = ranks.flatMap(({ rank, records }) => records.map((record) => ({ rank, ...record })))
    .sort((a, b) => a.at - b.at);
  lines.push("", ...all.slice(-most).map(({ at, rank, text }) => `${clock(at)}  rank ${rank}  ${text}`));
  return lines.join("\n");
}

/** Whole at every moment; a disk that fails is no reason to end a run. */
export function writeBlackBox(path: string, content: BlackBoxContent): void {
  try {
    Deno.writeTextFileSync(`${path}.new`, JSON.stringify(content) + "\n");
    Deno.renameSync(`${path}.new`, path);
  } catch {
    // what it would tell is told elsewhere too, in fewer words
  }
}
