import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { randomUniform } from "../../../kernels/testing.ts";
import { dawnFolder, dawnPackage, findDawn, loadDawn, PollSchedule } from "./dawn.ts";

const launcher = fileURLToPath(new URL("../../../troupe", import.meta.url));

Deno.test("dawnPackage is what the launcher fetches", () => {
  const version = Deno.readTextFileSync(launcher).match(/^DAWN_VERSION=(\S+)/m)?.[1];
  assertEquals(dawnPackage, `webgpu@${version}`);
});

Deno.test("dawnFolder() is in the user's cache, or where TROUPE_DAWN says", () => {
  const from = (variables: Record<string, string>) => dawnFolder((name) => variables[name]);
  assertEquals(from({ HOME: "/home/a" }), "/home/a/.cache/troupe/dawn-0.6.2/node_modules/webgpu");
  assertEquals(from({ HOME: "/home/a", XDG_CACHE_HOME: "/c" }), "/c/troupe/dawn-0.6.2/node_modules/webgpu");
  assertEquals(from({ HOME: "/home/a", TROUPE_DAWN: "/d" }), "/d");
  assertEquals(from({}), undefined);
});

Deno.test({
  name: "loadDawn() without the permission says which task has it",
  permissions: { read: "inherit", env: "inherit", ffi: false },
  fn: async () => {
    const error = await assertRejects(() => loadDawn({ more: ["nothing loaded under this key"] }), Error);
    assertStringIncludes(error.message, findDawn() === undefined ? "--add-dawn" : "./troupe dawn train");
  },
});

/** Polls until there is an answer after `takes` milliseconds, each poll `late`; gives how many it took and when it was seen. */
function poll(schedule: PollSchedule, takes: number, late = 0.01): { polls: number; seen: number } {
  schedule.begin(1000);
  let now = 1000, polls = 0;
  do {
    now += schedule.next(now) + late;
    polls++;
  } while (now < 1000 + takes);
  schedule.end(now);
  return { polls, seen: now - 1000 };
}

Deno.test("PollSchedule asks once or twice for answers that take alike, and soon after they are there", () => {
  for (const takes of [0.3, 4, 20]) {
    const schedule = new PollSchedule();
    for (let read = 0; read < 20; read++) poll(schedule, takes);
    const reads = Array.from({ length: 50 }, (_, read) => poll(schedule, takes * (1 + 0.01 * Math.sin(read))));
    const polls = reads.reduce((sum, read) => sum + read.polls, 0) / 50;
    assert(polls <= 3, `${takes} ms: ${polls} polls a read`);
    const late = reads.map(({ seen }, read) => seen - takes * (1 + 0.01 * Math.sin(read)));
    assert(Math.max(...late) <= Math.max(1, takes / 20) + 0.1, `${takes} ms: seen up to ${Math.max(...late)} ms late`);
  }
});

Deno.test("PollSchedule asks seldom more than once in a loop whose steps take alike, and follows them when they change", () => {
  const schedule = new PollSchedule(), random = randomUniform(3000, 1);
  for (const [part, takes] of [26, 4, 40].entries()) {
    let polls = 0, late = 0;
    for (let read = 0; read < 1000; read++) {
      const took = takes * (1 + 0.01 * (random[1000 * part + read]! - 0.5)), asked = poll(schedule, took);
      if (read < 100) continue;
      polls += asked.polls / 900;
      late += (asked.seen - took) / 900;
    }
    assert(polls < 1.4, `${takes} ms: ${polls} polls a read`);
    assert(late < 0.01 * takes + 0.05, `${takes} ms: seen ${late} ms late`);
  }
});

Deno.test("PollSchedule forgets an answer that was slow once", () => {
  const schedule = new PollSchedule();
  for (const takes of [20, 20, 5000, 20]) poll(schedule, takes);
  assert(poll(schedule, 20).seen < 22);
});

Deno.test("PollSchedule comes down again after answers that came late", () => {
  // A machine whose timers are 30 ms late, and a device that has its answer after 0.1 ms.
  const schedule = new PollSchedule();
  for (const takes of [5000, 5000]) poll(schedule, takes, 30);
  const seen = Array.from({ length: 16 }, () => poll(schedule, 0.1, 30).seen);
  assert(seen.at(-1)! < 60, `${seen}`);
});

/** The rasteriser in software that Dawn accepts; Debian has it with Chromium. */
const swiftShader = "/usr/lib/chromium/vk_swiftshader_icd.json";

/** Runs a program, or tests, on Dawn with that rasteriser and gives what it prints; where there is none, says so. */
async function onSwiftShader(
  program: string,
  verb: "run" | "test" = "run",
): Promise<{ code: number; text: string } | undefined> {
  const skip = (why: string) => console.log(`skipped: ${why}`);
  if (findDawn() === undefined) return void skip("Dawn is not here; ./troupe doctor --add-dawn adds it");
  if (Deno.permissions.querySync({ name: "ffi" }).state !== "granted") return void skip("needs --allow-ffi");
  try {
    Deno.statSync(swiftShader);
  } catch {
    return void skip("no SwiftShader here; Debian's package chromium has it");
  }
  const scratch = await Deno.makeTempDir({ prefix: "troupe dawn " });
  try {
    const file = join(scratch, "program.ts"), config = fileURLToPath(new URL("../../../deno.json", import.meta.url));
    await Deno.writeTextFile(file, program);
    const permissions = ["--allow-read", "--allow-env", "--allow-ffi"];
    const { code, stdout, stderr } = await new Deno.Command("deno", {
      args: [verb, "--quiet", "--no-check", `--config=${config}`, ...permissions, file],
      env: { TROUPE_WEBGPU: "dawn", VK_DRIVER_FILES: swiftShader, XDG_RUNTIME_DIR: "/tmp" },
    }).output();
    return { code, text: new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr) };
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
}
const source = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);

Deno.test("openWebGpuBackend() has Dawn check indices unless told not to, and the process ends by its own code", async () => {
  // The operand ends before the buffer does: a read past it is held at the last number, or finds what is behind.
  const ran = await onSwiftShader(`
    import { openWebGpuBackend } from ${source("./backend.ts")};
    import { endWithoutTeardown } from ${source("./dawn.ts")};
    endWithoutTeardown();
    const kernel = { name: "past", cost: { flops: 0, bytes: 0 }, reference() {},
      operands: [{ name: "x", type: "u32", length: 4, access: "read" }, { name: "y", type: "u32", length: 4, access: "write" }],
      passes: () => [{ operands: [0, 1], workgroups: [1, 1, 1], code: \`
        @group(0) @binding(0) var<storage, read> x: array<u32>;
        @group(0) @binding(1) var<storage, read_write> y: array<u32>;
        @compute @workgroup_size(1) fn main() { y[0] = x[x[0]]; }\` }] };
    const read = [];
    for (const options of [{}, { boundsChecks: false }]) {
      const backend = await openWebGpuBackend("dawn", options);
      const x = backend.allocate(64, "x"), y = backend.allocate(16, "y");
      backend.upload({ buffer: x, offset: 0, bytes: 64 }, Uint32Array.from({ length: 16 }, (_, i) => i + 9));
      const ranges = [{ buffer: x, offset: 0, bytes: 16 }, { buffer: y, offset: 0, bytes: 16 }];
      backend.submit(await backend.prepare([{ kind: "dispatch", kernel, ranges }]));
      const ticket = backend.read([ranges[1]]);
      await ticket.ready();
      read.push(new Uint32Array(ticket.take()[0].buffer)[0]);
      backend[Symbol.dispose]();
    }
    setTimeout(() => console.log("read " + read), 1);
    Deno.exitCode = 7;`);
  if (ran === undefined) return;
  assertStringIncludes(ran.text, "read 12,18");
  assertEquals(ran.code, 7);
});

Deno.test("a thread that ends while answers of Dawn are pending ends as it should: a test file's", async () => {
  const ran = await onSwiftShader(
    `
    import { openWebGpuBackend } from ${source("./backend.ts")};
    for (const disposed of [false, true]) {
      Deno.test({ name: "pending, disposed " + disposed, sanitizeOps: false, sanitizeResources: false, fn: async () => {
        const backend = await openWebGpuBackend("dawn");
        const range = { buffer: backend.allocate(16, "x"), offset: 0, bytes: 16 };
        backend.read([range]).ready().catch(() => {});
        if (disposed) backend[Symbol.dispose]();
      } });
    }`,
    "test",
  );
  if (ran === undefined) return;
  assertStringIncludes(ran.text, "2 passed");
  assertEquals(ran.code, 0, ran.text);
});

Deno.test("pinLibraries() keeps a driver loaded that nobody holds any more", async () => {
  const ran = await onSwiftShader(`
    import { loadedLibraries, pinLibraries } from ${source("./pin.ts")};
    const path = ${JSON.stringify(join(dirname(swiftShader), "libvk_swiftshader.so"))};
    const loaded = () => loadedLibraries().includes(path);
    Deno.dlopen(path, {}).close();
    console.log("without " + loaded());
    const driver = Deno.dlopen(path, {});
    pinLibraries();
    driver.close();
    console.log("with " + loaded());`);
  if (ran === undefined) return;
  assertStringIncludes(ran.text, "without false\nwith true");
  assertEquals(ran.code, 0, ran.text);
});

Deno.test("the operator suite runs on Dawn: add, norm, gate, both matrix product forms, attention", async () => {
  const ran = await onSwiftShader(`
    import { checkKernel, randomNormal } from ${source("../../../kernels/testing.ts")};
    import { add } from ${source("../../../kernels/elementwise/mod.ts")};
    import { matmul } from ${source("../../../kernels/matmul/mod.ts")};
    import { rmsNormForward } from ${source("../../../kernels/norm/mod.ts")};
    import { attentionForward } from ${source("../../../kernels/attention/mod.ts")};
    const inputs = (kernel) => Object.fromEntries(kernel.operands.filter(({ access }) => access === "read")
      .map(({ name, type, length }, i) => [name, name === "end" ? new Uint32Array(length).fill(length)
        : type === "u32" ? new Uint32Array(length) : randomNormal(length, i + 1)]));
    for (const kernel of [add({ length: 77 }), matmul({ m: 19, n: 20, k: 21, types: { a: "bf16", b: "bf16" } }),
      rmsNormForward({ rows: 3, columns: 36, epsilon: 1e-5 }),
      attentionForward({ tokens: 21, heads: 4, kvHeads: 2, headDim: 8 })]) {
      for (const software of [true, false]) {
        await checkKernel(kernel, inputs(kernel), { traits: { software }, tolerance: 2e-5 });
      }
    }
    const { testDevice } = await import(${source("../../../kernels/testing.ts")});
    console.log((await testDevice()).traits.provider);
    Deno.exit(0);`);
  if (ran === undefined) return;
  assertEquals(ran.code, 0, ran.text);
  assertStringIncludes(ran.text, "dawn");
});
