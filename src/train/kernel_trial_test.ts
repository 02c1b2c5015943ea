import { assert, assertEquals } from "@std/assert";
import { openWebGpuBackend } from "../backend/webgpu/backend.ts";
import { defaultProvider } from "../backend/webgpu/provider.ts";
import { tinyRecord } from "./_testing.ts";
import { allowedError, kernelsOf, KernelTrial, largestErrorOf } from "./kernel_trial.ts";

/** A half type has kernels of every storage type: activations in it, statistics, gradients and masters in `float32`. */
Deno.test("every kernel of a training in bfloat16 gives the same bits again, and nearly those of its reference", async () => {
  using backend = await openWebGpuBackend(defaultProvider());
  const model = { num_layers: 1, vocab_size: 37, dtype: "bfloat16" };
  const kernels = kernelsOf(tinyRecord({ model, data: { seq_len: 11 } }), backend.traits);
  assert(kernels.length > 20);
  for (const { kernel } of kernels) {
    using trial = new KernelTrial(kernel, backend);
    const list = await trial.prepare();
    const [first, second] = [await trial.result(list), await trial.result(list)];
    assertEquals(second, first, kernel.name);
    const error = largestErrorOf(first, trial.reference());
    assert(error <= allowedError(kernel), `${kernel.name} differs from its reference by ${error}`);
  }
  await backend.finish();
});
