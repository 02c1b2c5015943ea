/** Where device time goes: timings of dispatches added up by kernel, with the rates they reach, as a table. */
import type { Kernel } from "../../kernels/kernel.ts";

/** All dispatches of one kernel at one size. */
export interface KernelRow {
  readonly name: string;
  /** What tells kernels of one name apart: their sizes. */
  readonly shape: string;
  readonly calls: number;
  readonly seconds: number;
  /** Share of all device time. */
  readonly share: number;
  readonly teraflopsPerSecond: number;
  /** Of the least bytes that the kernel must move (`Kernel.cost`). */
  readonly gigabytesPerSecond: number;
}

/**
 * Adds up timings by name and shape, slowest first.
 *
 * @example
 * ```ts
 * import { kernelProfile } from "./kernel_profile.ts";
 * import { add } from "../../kernels/elementwise/mod.ts";
 * const [row] = kernelProfile([{ kernel: add({ length: 1000 }), seconds: 1e-6 }]);
 * console.assert(row.calls === 1 && Math.round(row.gigabytesPerSecond) === 12);
 * ```
 */
export function kernelProfile(timings: readonly { readonly kernel: Kernel; readonly seconds: number }[]): KernelRow[] {
  const sums = new Map<string, { kernel: Kernel; shape: string; calls: number; seconds: number }>();
  let total = 0;
  for (const { kernel, seconds } of timings) {
    const shape = kernel.shape ?? `${Math.max(...kernel.operands.map(({ length }) => length))}`;
    const key = `${kernel.name} ${shape}`;
    const sum = sums.get(key);
    if (sum === undefined) sums.set(key, { kernel, shape, calls: 1, seconds });
    else {
      sum.calls++;
      sum.seconds += seconds;
    }
    total += seconds;
  }
  return [...sums.values()].sort((a, b) => b.seconds - a.seconds).map(({ kernel, shape, calls, seconds }) => {
    const rate = (work: number) => seconds > 0 ? work * calls / seconds : 0;
    return {
      name: kernel.name,
      shape,
      calls,
      seconds,
      share: total > 0 ? seconds / total : 0,
      teraflopsPerSecond: rate(kernel.cost.flops) / 1e12,
      gigabytesPerSecond: rate(kernel.cost.bytes) / 1e9,
    };
  });
}

/** The rows as text for people, a line a kernel and one for the whole. */
export function formatKernelProfile(
  rows: readonly KernelRow[],
  { most = 40 }: { readonly most?: number } = {},
): string {
  const cells = rows.slice(0, most).map((row) => [
    row.name,
    row.shape,
    String(row.calls),
    (row.seconds * 1000).toFixed(3),
    (row.seconds / row.calls * 1e6).toFixed(1),
    (row.share * 100).toFixed(1),
    row.teraflopsPerSecond.toFixed(2),
    row.gigabytesPerSecond.toFixed(0),
  ]);
  const seconds = rows.reduce((sum, row) => sum + row.seconds, 0),
    calls = rows.reduce((sum, row) => sum + row.calls, 0);
  const rest = rows.length > most ? [`(and ${rows.length - most} more)`, "", "", "", "", "", "", ""] : undefined;
  const lines = [
    ["kernel", "shape", "calls", "ms", "us each", "%", "TFLOP/s", "GB/s"],
    ...cells,
    ...(rest ? [rest] : []),
    ["all", "", String(calls), (seconds * 1000).toFixed(3), "", "100.0", "", ""],
  ];
  const widths = lines[0]!.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines.map((line) =>
    line.map((cell, column) => column < 2 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)).join("  ")
  ).join("\n");
}
