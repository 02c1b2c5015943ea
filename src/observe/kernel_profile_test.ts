import { assert, assertAlmostEquals, assertEquals, assertStringIncludes } from "@std/assert";
import { add, scale } from "../../kernels/elementwise/mod.ts";
import { matmul } from "../../kernels/matmul/mod.ts";
import { formatKernelProfile, kernelProfile, kernelTrace } from "./kernel_profile.ts";

Deno.test("kernelProfile() adds up calls by name and shape, slowest first, with rates from the cost", () => {
  const rows = kernelProfile([
    { kernel: add({ length: 1000 }), seconds: 1e-6 },
    { kernel: matmul({ m: 10, n: 20, k: 30 }), seconds: 6e-6 },
    { kernel: add({ length: 1000 }), seconds: 2e-6 },
    { kernel: scale({ length: 500, factor: 2 }), seconds: 1e-6 },
  ]);
  assertEquals(rows.map(({ name, calls }) => [name, calls]), [
    ["matmul.nn", 1],
    ["elementwise.add", 2],
    ["elementwise.scale", 1],
  ]);
  assertEquals(rows[0]!.shape, "10 x 20 x 30");
  assertAlmostEquals(rows[0]!.teraflopsPerSecond, 12_000 / 6e-6 / 1e12);
  assertAlmostEquals(rows[1]!.gigabytesPerSecond, 24_000 / 3e-6 / 1e9);
  assertAlmostEquals(rows.reduce((sum, { share }) => sum + share, 0), 1);
});

Deno.test("formatKernelProfile() prints a line a kernel, and says how many it leaves out", () => {
  const rows = kernelProfile([1, 2, 3].map((n) => ({ kernel: add({ length: 4 * n }), seconds: n * 1e-3 })));
  const text = formatKernelProfile(rows, { most: 2 });
  assertEquals(text.split("\n").length, 5);
  assertStringIncludes(text, "(and 1 more)");
  assert(text.split("\n")[1]!.includes("3.000"));
});

Deno.test("kernelTrace() lays dispatches one after the other, and formatKernelProfile() compares with peaks", () => {
  const kernel = add({ length: 1000 }), timings = [{ kernel, seconds: 1e-6 }, { kernel, seconds: 3e-6 }];
  const { traceEvents } = JSON.parse(kernelTrace(timings, { rank: 2 }));
  const spans = traceEvents.filter(({ ph }: { ph: string }) => ph === "X");
  assertEquals(spans.map(({ ts, dur, pid }: Record<string, number>) => [ts, dur, pid]), [[0, 1, 2], [1, 3, 2]]);
  // 12,000 bytes a call in 2 µs each: 6 GB/s.
  const table = formatKernelProfile(kernelProfile(timings), {
    peaks: { teraflopsPerSecond: 1, gigabytesPerSecond: 12 },
  });
  assertEquals(table.split("\n")[1].trim().split(/\s+/).at(-1), "50");
});
