/**
 * A reference training replayed on WebGPU as people replay it: by the verb, in a process of its own, and where Mesa renders
 * with its compiler's optimisations, which the test command leaves out.
 */
import { assertEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { defaultProvider } from "../src/backend/webgpu/provider.ts";
import { inFolder } from "./processes.ts";

Deno.test("verify follows hf/llama_gqa_packed on WebGPU", () =>
  inFolder(async (folder, processes) => {
    const { code, out, err } = await processes.run(
      [
        ...(defaultProvider() === "dawn" ? ["dawn"] : []),
        "verify",
        fileURLToPath(import.meta.resolve("./golden/hf/llama_gqa_packed")),
        "--backend",
        "webgpu",
        "--json",
      ],
      { folder, env: { GALLIVM_PERF: "" } },
    );
    assertEquals(code, 0, out + err);
    const { backend, pass } = JSON.parse(out);
    assertEquals([backend, pass], ["webgpu", true]);
  }));
