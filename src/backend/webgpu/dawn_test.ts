import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { dawnFolder, dawnPackage, expectedNext, findDawn, loadDawn } from "./dawn.ts";

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

Deno.test("expectedNext() comes down again after answers that came late", () => {
  // A machine whose timers are 30 ms late, and a device that has its answer after 0.1 ms.
  let expected = 5000;
  const waits: number[] = [];
  while (expected >= 2) {
    const took = Math.max(1, 0.8 * expected) + 30;
    waits.push(took);
    expected = expectedNext(took, 1);
    if (waits.length === 12) break;
  }
  assert(waits.at(-1)! < 60, `${waits}`);
  assertEquals(expectedNext(40, 3), 40); // polled before it was there: as long as it took
});

/** The rasteriser in software that Dawn accepts; Debian has it with Chromium. */
const swiftShader = "/usr/lib/chromium/vk_swiftshader_icd.json";

Deno.test("the operator suite runs on Dawn: add, norm, gate, both matrix product forms, attention", async () => {
  if (findDawn() === undefined) return console.log("skipped: Dawn is not here; ./troupe doctor --add-dawn adds it");
  if (Deno.permissions.querySync({ name: "ffi" }).state !== "granted") return console.log("skipped: needs --allow-ffi");
  try {
    Deno.statSync(swiftShader);
  } catch {
    return console.log("skipped: no SwiftShader here; Debian's package chromium has it");
  }
  const code = `
    import { checkKernel, randomNormal } from ${
    JSON.stringify(new URL("../../../kernels/testing.ts", import.meta.url).href)
  };
    import { add } from ${JSON.stringify(new URL("../../../kernels/elementwise/mod.ts", import.meta.url).href)};
    import { matmul } from ${JSON.stringify(new URL("../../../kernels/matmul/mod.ts", import.meta.url).href)};
    import { rmsNormForward } from ${JSON.stringify(new URL("../../../kernels/norm/mod.ts", import.meta.url).href)};
    import { attentionForward } from ${
    JSON.stringify(new URL("../../../kernels/attention/mod.ts", import.meta.url).href)
  };
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
    const { testDevice } = await import(${
    JSON.stringify(new URL("../../../kernels/testing.ts", import.meta.url).href)
  });
    console.log((await testDevice()).traits.provider);
    Deno.exit(0);`;
  const scratch = await Deno.makeTempDir({ prefix: "troupe dawn " });
  try {
    const file = join(scratch, "suite.ts");
    await Deno.writeTextFile(file, code);
    const root = fileURLToPath(new URL("../../../", import.meta.url));
    const { success, stdout, stderr } = await new Deno.Command("deno", {
      args: [
        "run",
        "--quiet",
        "--no-check",
        `--config=${root}deno.json`,
        "--allow-read",
        "--allow-env",
        "--allow-ffi",
        file,
      ],
      env: { TROUPE_WEBGPU: "dawn", VK_DRIVER_FILES: swiftShader, XDG_RUNTIME_DIR: "/tmp" },
    }).output();
    const text = new TextDecoder().decode(stdout) + new TextDecoder().decode(stderr);
    assert(success, text);
    assertStringIncludes(text, "dawn");
  } finally {
    await Deno.remove(scratch, { recursive: true });
  }
});
