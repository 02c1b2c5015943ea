/** What benchmarks print, and how they take time. */
import type { Backend } from "../backend/backend.ts";
import { settle } from "../graph/program.ts";

/** One figure, one line of JSON. What else a line has says how the figure came about. */
export interface BenchLine {
  readonly bench: "device" | "step" | "kernels" | "memory" | "startup" | "comm" | "sync" | "data" | "world";
  readonly figure: string;
  readonly value: number | string;
  readonly unit: string;
  readonly [detail: string]: unknown;
}
export type Report = (line: BenchLine) => void;

/** Six digits that count: the clocks give no more. Counts stay as they are. */
export const round = (value: number): number => Number.isInteger(value) ? value : Number(value.toPrecision(6));

/** Median and least of a sample, in its own unit. */
export function spread(sample: readonly number[]): { median: number; best: number } {
  const sorted = [...sample].sort((a, b) => a - b), middle = sorted.length >> 1;
  const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
  return { median: round(median), best: round(sorted[0]!) };
}

export const secondsSince = (started: number): number => (performance.now() - started) / 1000;

/**
 * A wait for all work submitted so far, by a read-back of four bytes: a third of a millisecond on an idle device, where
 * `finish` polls every 13.
 */
export function openBarrier(backend: Backend): { wait(): Promise<void>; [Symbol.dispose](): void } {
  const buffer = backend.allocate(256, "barrier");
  return {
    async wait() {
      await settle(backend.read([{ buffer, offset: 0, bytes: 4 }]));
    },
    [Symbol.dispose]: () => backend.release(buffer),
  };
}

export function reportDevice({ name, traits }: Backend, report: Report): void {
  const { provider, description, software, subgroupSize } = traits;
  report({
    bench: "device",
    figure: "device",
    value: description,
    unit: "",
    backend: name,
    provider,
    software,
    subgroupSize,
  });
}
