import { assert, assertEquals, assertGreater, assertMatch, assertStringIncludes } from "@std/assert";
import { scale } from "../../kernels/elementwise/mod.ts";
import { openNullBackend } from "../backend/null/backend.ts";
import { openBackend } from "../backend/open.ts";
import { loadConfig, resolveConfig } from "../config/mod.ts";
import { inScratch, jsonLines, tinyRun, troupe } from "./_testing.ts";
import { kernelsOf } from "../train/kernel_trial.ts";
import { benchKernels, measureKernel, otherRuns } from "./bench_kernels.ts";
import { type BenchLine, round, spread } from "./bench_line.ts";

const byFigure = (lines: readonly BenchLine[]) => new Map(lines.map((line) => [line.figure, line]));

Deno.test("bench step reports the step whole and in parts", () =>
  inScratch(async (folder) => {
    const { config } = await tinyRun(folder);
    const ran = await troupe("bench", "step", "--config", config, "--backend", "cpu", "--steps", "3");
    assertEquals(ran.code, 0, ran.err);
    const lines = jsonLines<BenchLine>(ran), figures = byFigure(lines);
    const value = (figure: string) => figures.get(figure)!.value as number;
    assertEquals(figures.get("device")!.backend, "cpu");
    // Table and head; 3 norms; 4 attention matrices with biases; 3 feed-forward matrices.
    assertEquals(value("parameters"), 2 * 280 * 16 + 3 * 16 + 4 * (16 * 16 + 16) + 3 * 16 * 32);
    const { estimate } = figures.get("peak_memory")!;
    assert(value("peak_memory") >= (estimate as number) && value("peak_memory") < 1.1 * (estimate as number));
    assertMatch(String(figures.get("tokens_per_second")!.measured), /^undisturbed/);
    assertEquals(figures.get("tokens_per_second")!.tokens, 3 * 2 * 2 * 16);
    // Cleared gradients, two micro-batches forward with their results, and backward, the norm, the update.
    assertEquals(figures.get("dispatches")!.submits, 1 + 2 * 3 + 2);
    assertEquals(figures.get("dispatches")!.read_backs, 1);
    assertGreater(value("dispatch_host"), 0);
    let sum = 0;
    for (const part of ["data", "forward", "backward", "optimizer", "read_back"]) {
      const line = figures.get(part)!;
      assertMatch(String(line.measured), /^split/);
      assert(value(part) >= (line.best as number) && (line.best as number) > 0, JSON.stringify(line));
      sum += value(part);
    }
    assert(Math.abs(value("split_step") - sum) < 1e-6 + 1e-4 * sum);
    for (const part of ["forward", "backward", "optimizer"]) assertGreater(figures.get(part)!.least_flops, 0);
  }));

Deno.test("bench sync moves the gradients of a record between two ranks and says where the time went", () =>
  inScratch(async (folder) => {
    const { config } = await tinyRun(folder);
    const words = ["--config", config, "--backend", "cpu", "--nproc", "2", "--repeats", "1"];
    const ran = await troupe("bench", "sync", ...words);
    assertEquals(ran.code, 0, ran.err);
    const figures = byFigure(jsonLines<BenchLine>(ran)), bytes = figures.get("gradients")!.value as number;
    assertEquals(bytes, 4 * (2 * 280 * 16 + 3 * 16 + 4 * (16 * 16 + 16) + 3 * 16 * 32));
    assertEquals(figures.get("reduce: read-back")!.bytes, bytes);
    for (const what of ["reduce", "gather"]) {
      for (
        const phase of ["", ": processor", ": collectives under way", ": read-back", ": upload", `: wait for ${what}`]
      ) {
        assertGreater(figures.get(what + phase)!.value, 0, what + phase);
      }
    }
    const alone = await troupe("bench", "sync", "--nproc", "1");
    assertStringIncludes(alone.err, "--nproc: 1 has nobody to exchange with; 2 or more would work");
  }));

Deno.test("benchKernels() checks and times every kernel of a run on WebGPU", () =>
  inScratch(async (folder) => {
    const config = resolveConfig(await loadConfig((await tinyRun(folder)).config));
    using backend = await openBackend("webgpu");
    const lines: BenchLine[] = [];
    assert(await benchKernels([config], { backend, repeats: 1, report: (line) => lines.push(line) }));
    assertEquals(lines.length, kernelsOf(config, backend.traits).length + 1);
    const families = new Set(lines.map(({ figure }) => figure.split(".")[0]));
    for (const family of ["matmul", "attention", "norm", "rope", "gate", "crossEntropy", "embedding", "adamw"]) {
      assert(families.has(family), family);
    }
    for (const line of lines.slice(0, -1)) {
      assert((line.error as number) <= 1e-4, JSON.stringify(line));
      assert((line.value as number) > 0 && (line.least_bytes as number) > 0, JSON.stringify(line));
    }
    assertEquals(backend.allocatedBytes, 0);
    await backend.finish();
  }));

Deno.test("measureKernel() sees a kernel that differs from its reference", async () => {
  using backend = await openBackend("cpu");
  const good = scale({ length: 9, factor: 2 }), bad = { ...good };
  let calls = 0;
  bad.reference = (views) => {
    good.reference(views);
    views[1][4] += calls++ * 3; // the device's run comes first
  };
  assertEquals((await measureKernel(good, backend, 1)).error, 0);
  assertGreater((await measureKernel(bad, backend, 1)).error, 0.1);
});

Deno.test("otherRuns() have kernels that the demo has not", () => {
  using backend = openNullBackend();
  const names = otherRuns().flatMap((config) => kernelsOf(config, backend.traits).map(({ kernel }) => kernel.name));
  for (const name of ["norm.layer.forward", "rowNormalize.backward", "elementwise.dropout", "reduce.columnSum"]) {
    assert(names.includes(name), name);
  }
});

Deno.test("bench startup starts the program afresh and splits its time", () =>
  inScratch(async (folder) => {
    const { config } = await tinyRun(folder);
    const ran = await troupe("bench", "startup", "--config", config, "--backend", "cpu", "--repeats", "1");
    assertEquals(ran.code, 0, ran.err);
    const figures = byFigure(jsonLines<BenchLine>(ran));
    const stages = ["deno_start", "module_load", "record", "device", "data", "model", "first_step"];
    const values = stages.map((stage) => figures.get(stage)!.value as number);
    for (const [i, value] of values.entries()) assert(value >= 0 && value < 600, `${stages[i]} ${value}`);
    const total = figures.get("total")!.value as number;
    assert(Math.abs(total - values.reduce((sum, value) => sum + value, 0)) < 1e-3 * total);
  }));

Deno.test("bench refuses in one sentence what cannot work", async () => {
  const cases: [string[], RegExp][] = [
    [["steps"], /"steps" is not one of all, step, kernels, memory, startup/],
    [["--steps", "0"], /--steps: 0 is not above 0/],
    [["comm", "--mebibytes", "999999999"], /--mebibytes: 999999999 takes .* are free/],
    [["--backend", "cuda"], /--backend: "cuda" is not one of webgpu, cpu/],
    [["--config", "/none.yaml"], /none\.yaml.*cannot be read/s],
  ];
  for (const [args, message] of cases) {
    const { code, out, err } = await troupe("bench", ...args);
    assertEquals([code, out], [2, ""]);
    assertMatch(err, message);
  }
});

Deno.test("bench --help tells what is measured, and keeps to itself what is not for people", async () => {
  const { code, out } = await troupe("bench", "--help");
  assertEquals(code, 0);
  for (const word of ["Usage: troupe bench [WHAT]", "read_back", "--steps N"]) assertStringIncludes(out, word);
  assert(!out.includes("--child"));
});

Deno.test("spread() gives the median and the least", () => {
  assertEquals(spread([3, 1, 2]), { median: 2, best: 1 });
  assertEquals(spread([4, 1, 2, 3]), { median: 2.5, best: 1 });
  assertEquals([round(1234567), round(1.23456789)], [1234567, 1.23457]);
});
