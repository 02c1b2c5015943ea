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

/** What a device was measured to reach at best. */
export interface Peaks {
  /** Of a large product in the run's type. */
  readonly teraflopsPerSecond: number;
  /** Read and written by a copy. */
  readonly gigabytesPerSecond: number;
}

/** The rows as text for people, a line a kernel and one for the whole; with peaks, how near each comes to its limit. */
export function formatKernelProfile(
  rows: readonly KernelRow[],
  { most = 40, peaks }: { readonly most?: number; readonly peaks?: Peaks } = {},
): string {
  const ofPeak = ({ teraflopsPerSecond, gigabytesPerSecond }: KernelRow) =>
    peaks === undefined ? [] : [
      (100 * Math.max(
        teraflopsPerSecond / peaks.teraflopsPerSecond,
        gigabytesPerSecond / peaks.gigabytesPerSecond,
      )).toFixed(0),
    ];
  const blank = peaks === undefined ? [] : [""];
  const cells = rows.slice(0, most).map((row) => [
    row.name,
    row.shape,
    String(row.calls),
    (row.seconds * 1000).toFixed(3),
    (row.seconds / row.calls * 1e6).toFixed(1),
    (row.share * 100).toFixed(1),
    row.teraflopsPerSecond.toFixed(2),
    row.gigabytesPerSecond.toFixed(0),
    ...ofPeak(row),
  ]);
  const seconds = rows.reduce((sum, row) => sum + row.seconds, 0),
    calls = rows.reduce((sum, row) => sum + row.calls, 0);
  const rest = rows.length > most
    ? [`(and ${rows.length - most} more)`, "", "", "", "", "", "", "", ...blank]
    : undefined;
  const lines = [
    ["kernel", "shape", "calls", "ms", "us each", "%", "TFLOP/s", "GB/s", ...(peaks ? ["% of peak"] : [])],
    ...cells,
    ...(rest ? [rest] : []),
    ["all", "", String(calls), (seconds * 1000).toFixed(3), "", "100.0", "", "", ...blank],
  ];
  const widths = lines[0]!.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines.map((line) =>
    line.map((cell, column) => column < 2 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)).join("  ")
  ).join("\n");
}

/**
 * The dispatches of a profile one after the other, as a trace in Chrome's format: open the file in `chrome://tracing` or
 * https://ui.perfetto.dev. Times are the device's; gaps between dispatches are left out.
 */
export function kernelTrace(
  timings: readonly { readonly kernel: Kernel; readonly seconds: number }[],
  { rank = 0, peaks }: { readonly rank?: number; readonly peaks?: Peaks } = {},
): string {
  let ts = 0;
  const events = timings.map(({ kernel: { name, shape, cost }, seconds }) => {
    const rate = (work: number) => seconds > 0 ? work / seconds : 0;
    const event = {
      ph: "X",
      name,
      pid: rank,
      tid: 0,
      ts,
      dur: seconds * 1e6,
      args: { shape, TFLOPs: rate(cost.flops) / 1e12, GBs: rate(cost.bytes) / 1e9 },
    };
    ts += event.dur;
    return event;
  });
  return JSON.stringify({
    traceEvents: [
      { ph: "M", name: "process_name", pid: rank, tid: 0, args: { name: `device of rank ${rank}` } },
      ...events,
    ],
    otherData: { ...peaks },
  });
}
