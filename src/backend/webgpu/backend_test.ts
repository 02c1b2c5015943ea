import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { mock } from "@std/testing";
import type { Kernel } from "../../../kernels/kernel.ts";
import { openWebGpuBackend } from "./backend.ts";
import { createPipelineCache, numberedLines } from "./pipelines.ts";
import { openDevice, requestAdapter } from "./provider.ts";

function kernelOf(code: string, workgroups: [number, number, number] = [1, 1, 1]): Kernel {
  return {
    name: "test.kernel",
    operands: [{ name: "x", type: "u32", length: 4, access: "update" }],
    cost: { flops: 0, bytes: 0 },
    reference() {},
    passes: () => [{ code, workgroups, operands: [0] }],
  };
}

const increment = `@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@compute @workgroup_size(4) fn main(@builtin(local_invocation_index) i: u32) { x[i] += 1u; }`;

Deno.test("prepare() rejects refused WGSL with the kernel, the message and the numbered lines", async () => {
  using backend = await openWebGpuBackend("deno");
  const buffer = backend.allocate(16, "x");
  const ranges = [{ buffer, offset: 0, bytes: 16 }];
  const kernel = kernelOf(`@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@compute @workgroup_size(4) fn main() {
  let wrong: u32 = 1.5;
}`);
  const error = await assertRejects(() => backend.prepare([{ kind: "dispatch", kernel, ranges }]), SyntaxError);
  assertStringIncludes(error.message, "test.kernel");
  assertStringIncludes(error.message, "`u32`");
  assertStringIncludes(error.message, ">    3 |   let wrong: u32 = 1.5;");
  // A refused text leaves the device sound.
  backend.submit(await backend.prepare([{ kind: "dispatch", kernel: kernelOf(increment), ranges }]));
  assertEquals([...new Uint32Array(backend.read(ranges).take()[0].buffer)], [1, 1, 1, 1]);
  await backend.finish();
});

Deno.test("prepare() refuses more workgroups than an axis has, and bindings that the text does not name", async () => {
  using backend = await openWebGpuBackend("deno");
  const buffer = backend.allocate(16, "x");
  const ranges = [{ buffer, offset: 0, bytes: 16 }];
  await assertRejects(
    () => backend.prepare([{ kind: "dispatch", kernel: kernelOf(increment, [65_536, 1, 1]), ranges }]),
    RangeError,
    "65536 x 1 x 1",
  );
  const unbound = kernelOf("@compute @workgroup_size(1) fn main() {}");
  await assertRejects(
    () => backend.prepare([{ kind: "dispatch", kernel: unbound, ranges }]),
    Error,
    "Cannot bind the operands of kernel test.kernel",
  );
  await backend.finish();
});

Deno.test("submit() on a released buffer surfaces at finish() and at every later call", async () => {
  using backend = await openWebGpuBackend("deno");
  const buffer = backend.allocate(16, "gone");
  const list = await backend.prepare([
    { kind: "dispatch", kernel: kernelOf(increment), ranges: [{ buffer, offset: 0, bytes: 16 }] },
  ]);
  backend.release(buffer);
  backend.submit(list);
  await assertRejects(() => backend.finish(), Error, "WebGPU device reported an error");
  assertThrows(() => backend.allocate(16, "more"), Error, "gone");
  await assertRejects(() => backend.prepare([]), Error, "gone");
});

Deno.test("dispose() releases all memory, and later calls throw", async () => {
  const backend = await openWebGpuBackend("deno");
  backend.allocate(1024, "a");
  assertEquals(backend.allocatedBytes, 1024);
  backend[Symbol.dispose]();
  assertEquals(backend.allocatedBytes, 0);
  assertThrows(() => backend.allocate(4, "b"), Error, "disposed");
});

Deno.test("get() compiles equal texts once", async () => {
  const { device } = await openDevice("deno");
  const cache = createPipelineCache(device);
  const [a, b] = await Promise.all([cache.get("one", increment, "main"), cache.get("two", increment, "main")]);
  assert(a === b);
  assertEquals(cache.size, 1);
  device.destroy();
});

Deno.test("get() prints the texts of the kernel that is asked for", async () => {
  const { device } = await openDevice("deno");
  const print = mock.method(console, "error", () => {});
  try {
    const cache = createPipelineCache(device, "matmul");
    await cache.get("add", increment, "main");
    await cache.get("matmul.forward", increment + "\n", "main");
  } finally {
    print.mock.restore();
    device.destroy();
  }
  assertEquals(print.mock.calls.map(({ arguments: [text] }) => String(text).split("\n")[0]), [
    "// matmul.forward, entry point main",
  ]);
});

Deno.test("numberedLines() shows the lines around one and marks it", () => {
  assertEquals(numberedLines("a\nb\nc\nd", 3, 1), "     2 | b\n>    3 | c\n     4 | d");
});

Deno.test("openWebGpuBackend() states real limits and a subgroup size only with subgroups", async () => {
  using backend = await openWebGpuBackend("deno");
  const { traits } = backend;
  const adapter = await requestAdapter("deno");
  assertEquals(traits.limits.maxStorageBufferBindingSize, adapter!.limits.maxStorageBufferBindingSize);
  assertEquals(traits.subgroupSize > 0, traits.features.subgroups);
  assert(traits.description.length > 0);
});

Deno.test("openWebGpuBackend() leaves the terminal to the program where XDG_RUNTIME_DIR is unset", async () => {
  const program = `import { openWebGpuBackend } from ${JSON.stringify(import.meta.resolve("./backend.ts"))};
    (await openWebGpuBackend("deno"))[Symbol.dispose]();`;
  const config = import.meta.resolve("../../../deno.json").slice("file://".length);
  const { XDG_RUNTIME_DIR: _, ...env } = Deno.env.toObject();
  const args = ["eval", "--no-check", `--config=${config}`, program];
  const { code, stderr } = await new Deno.Command("deno", { args, env, clearEnv: true }).output();
  assertEquals([code, new TextDecoder().decode(stderr)], [0, ""]);
});

Deno.test("profile() times every dispatch submitted meanwhile, in order", async () => {
  using backend = await openWebGpuBackend("deno");
  if (!backend.profile) return console.log("skipped: the device has no timestamps");
  const ranges = [{ buffer: backend.allocate(16, "x"), offset: 0, bytes: 16 }];
  const slow = `@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@compute @workgroup_size(4) fn main(@builtin(local_invocation_index) i: u32) {
  for (var n = 0u; n < 2000000u; n++) { x[i] = x[i] * 3u + n; }
}`;
  const short = kernelOf(increment), long = kernelOf(slow);
  const list = await backend.prepare(
    [short, long].map((kernel) => ({ kind: "dispatch" as const, kernel, ranges })),
  );
  const shortList = await backend.prepare([{ kind: "dispatch", kernel: kernelOf(increment), ranges }]);
  const timings = await backend.profile(() => {
    for (let run = 0; run < 300; run++) backend.submit(run % 100 === 0 ? list : shortList);
  });
  assertEquals(timings.length, 303);
  assert(timings[0]!.kernel === short && timings[1]!.kernel === long && timings[102]!.kernel === long);
  // Another process on these cores lengthens single dispatches: the typical short one counts, and the quickest long one.
  const sorted = (isLong: boolean) =>
    timings.filter(({ kernel }) => (kernel === long) === isLong).map(({ seconds }) => seconds).sort((a, b) => a - b);
  const quickest = sorted(true)[0]!, typical = sorted(false)[150]!;
  assert(quickest > 10 * typical, `${quickest} ${typical}`);
});

Deno.test("uploads, copies and dispatches that gather take effect in the order of their calls", async () => {
  using backend = await openWebGpuBackend("deno", { gather: true });
  const range = (buffer: ReturnType<typeof backend.allocate>) => ({ buffer, offset: 0, bytes: 16 });
  const [x, kept, last] = ["x", "kept", "last"].map((label) => range(backend.allocate(16, label)));
  const add = await backend.prepare([{ kind: "dispatch", kernel: kernelOf(increment), ranges: [x] }]);
  const keep = await backend.prepare([{ kind: "copy", source: x, target: kept }]);
  const again = await backend.prepare([{ kind: "copy", source: kept, target: last }]);
  const clear = await backend.prepare([{ kind: "clear", target: x }]);
  const clearMiddle = await backend.prepare([{ kind: "clear", target: { ...x, offset: 4, bytes: 8 } }]);
  const values = () => backend.read([x, kept, last]).take().map((bytes) => new Uint32Array(bytes.buffer)[0]);
  for (let round = 0; round < 2; round++) { // the first finds the device idle
    backend.upload(x, Uint32Array.of(10, 10, 10, 10));
    for (const list of [add, keep, add, again, add, keep]) backend.submit(list);
    assertEquals(values(), [13, 13, 11]);
    backend.submit(add);
    backend.submit(keep);
    backend.upload(x, Uint32Array.of(20, 20, 20, 20));
    backend.submit(add);
    backend.submit(again);
    assertEquals(values(), [21, 14, 14]);
    for (const list of [add, keep, clear, add]) backend.submit(list);
    assertEquals(values(), [1, 22, 14]);
    for (const list of [add, clearMiddle, add]) backend.submit(list);
    assertEquals([...new Uint32Array(backend.read([x]).take()[0]!.buffer)], [3, 1, 1, 3]);
  }
  await backend.finish();
});

Deno.test("rounds that are recorded ahead take effect in the order of their calls, whatever comes between", async () => {
  using backend = await openWebGpuBackend("deno", { gather: true });
  const range = (buffer: ReturnType<typeof backend.allocate>) => ({ buffer, offset: 0, bytes: 16 });
  const [x, kept] = ["x", "kept"].map((label) => range(backend.allocate(16, label)));
  const begin = await backend.prepare([{ kind: "clear", target: kept }]);
  const add = await backend.prepare([{ kind: "dispatch", kernel: kernelOf(increment), ranges: [x] }]);
  const keep = await backend.prepare([{ kind: "copy", source: x, target: kept }]);
  for (let round = 0; round < 36; round++) {
    const start = 100 * round, other = round % 6 === 5 ? Math.floor(round / 6) : -1;
    backend.submit(begin);
    backend.upload(x, new Uint32Array(4).fill(start));
    backend.submit(add);
    if (other === 0) backend.upload(x, new Uint32Array(4).fill(start + 50)); // on what has been recorded
    if (other === 1) await new Promise((resolve) => setTimeout(resolve, 0)); // the turn ends
    if (other === 2) backend.submit(add);
    backend.submit(keep);
    if (other !== 3) backend.submit(add);
    const values = backend.read([x, kept]).take().map((bytes) => new Uint32Array(bytes.buffer)[0]! - start);
    const expected = { 0: [51, 50], 2: [3, 2], 3: [1, 1] }[other] ?? [2, 1];
    assertEquals(values, expected, `round ${round}`);
    await Promise.resolve(); // where it is recorded ahead
  }
  await backend.finish();
});
