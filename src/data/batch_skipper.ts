/** Inclusive ranges of batch indices to drop, as half-open spans: "2-4,7" → [2, 5), [7, 8). */
export type BatchSpans = readonly (readonly [start: number, end: number])[];

/**
 * Parses `skip_batches`: comma-separated batch indices or inclusive ranges, ascending; "" is none. Throws `SyntaxError`
 * on anything else.
 *
 * @example
 * ```ts
 * import { isSkipped, parseSkipBatches } from "./batch_skipper.ts";
 * const spans = parseSkipBatches("2-4,7");
 * console.assert(isSkipped(spans, 3) && !isSkipped(spans, 5));
 * ```
 */
export function parseSkipBatches(text: string | null | undefined): BatchSpans {
  const spans: [number, number][] = [];
  if (!text) return spans;
  for (const part of text.split(",")) {
    const match = /^\s*(\d+)\s*(?:-\s*(\d+)\s*)?$/.exec(part);
    if (!match) {
      throw new SyntaxError(
        `data.skip_batches: "${part}" in "${text}" is neither an index nor a range; "5-10,23" would work`,
      );
    }
    const start = Number(match[1]);
    const end = Number(match[2] ?? start) + 1;
    const previous = spans.at(-1)?.[1] ?? 0;
    if (end <= start || start < previous) {
      throw new SyntaxError(`data.skip_batches: "${part}" in "${text}" is not ascending; "5-10,23" would work`);
    }
    spans.push([start, end]);
  }
  return spans;
}

/** Whether the spans hold batch `index`. */
export function isSkipped(spans: BatchSpans, index: number): boolean {
  return spans.some(([start, end]) => index >= start && index < end);
}
