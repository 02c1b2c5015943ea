import { assert, assertEquals } from "@std/assert";
import { probeAdapter } from "./doctor.ts";
import { openDevice } from "./provider.ts";

Deno.test("probeAdapter() reports what kernels would see", async () => {
  const report = await probeAdapter();
  const { device, traits } = await openDevice("deno");
  device.destroy();
  assert(report.found);
  assertEquals(report.description, traits.description);
  assertEquals(report.software, traits.software);
  assertEquals(report.features.includes("subgroups"), traits.features.subgroups);
  assertEquals(report.limits.maxBufferSize, traits.limits.maxBufferSize);
  assertEquals(JSON.parse(JSON.stringify(report)), report); // plain data
});

Deno.test({
  name: "probeAdapter() gives the reason and the advice where there is no adapter",
  permissions: { read: "inherit", env: "inherit", ffi: false },
  fn: async () => {
    const report = await probeAdapter("dawn");
    assert(!report.found);
    assert(report.reason.includes("./troupe d"), report.reason);
    assert(report.advice.includes("--backend cpu"));
  },
});

Deno.test("openDevice() without a Vulkan driver says what to install", async () => {
  // A process of its own, its driver list emptied: the loader reads it once.
  const code = `import { openDevice } from ${JSON.stringify(import.meta.resolve("./provider.ts"))};
    try { await openDevice("deno"); console.log("opened"); } catch (error) { console.log(error.message); }`;
  const { stdout } = await new Deno.Command(Deno.execPath(), {
    args: ["eval", "--ext=ts", code],
    env: { VK_DRIVER_FILES: "/nonexistent", VK_ICD_FILENAMES: "/nonexistent", DENO_WEBGPU_BACKEND: "vulkan" },
  }).output();
  const said = new TextDecoder().decode(stdout);
  assert(said.includes("no adapter was found") && said.includes("mesa-vulkan-drivers"), said);
});
