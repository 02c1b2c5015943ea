import { assertEquals, assertStringIncludes } from "@std/assert";
import { add } from "../../kernels/elementwise/mod.ts";
import { openBackend } from "../backend/open.ts";
import { profileStep } from "./profile.ts";

const options = { rank: 1, type: "f32", split: false } as const;

Deno.test("profileStep() tells where a step's device time goes, beside the peaks of the device", async () => {
  using backend = await openBackend("webgpu");
  if (!backend.profile) return console.log("skipped: the device has no timestamps");
  const kernel = add({ length: 1000 });
  const ranges = kernel.operands.map(({ name }) => ({ buffer: backend.allocate(4000, name), offset: 0, bytes: 4000 }));
  const list = await backend.prepare([{ kind: "dispatch", kernel, ranges }]);
  const before = backend.allocatedBytes;
  const { result, profile } = await profileStep(backend, () => {
    backend.submit(list);
    return Promise.resolve("done");
  }, options);
  assertEquals(result, "done");
  for (const part of ["elementwise.add", "% of peak", "Peaks measured here"]) {
    assertStringIncludes(profile!.table, part);
  }
  const { traceEvents } = JSON.parse(profile!.trace);
  assertEquals(traceEvents.filter(({ ph }: { ph: string }) => ph === "X").length, 1);
  assertEquals(backend.allocatedBytes, before);
  await backend.finish();
});

Deno.test("profileStep() runs the step all the same where nothing can be timed", async () => {
  using backend = await openBackend("cpu");
  assertEquals(await profileStep(backend, () => Promise.resolve(7), options), { result: 7 });
});
