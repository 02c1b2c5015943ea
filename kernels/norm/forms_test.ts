import { assert } from "@std/assert";
import { crossEntropyBackward, crossEntropyForward } from "../cross_entropy/mod.ts";
import type { Kernel } from "../kernel.ts";
import { checkKernel, randomNormal, testDevice } from "../testing.ts";
import { layerNormWeightGradient, rmsNormWeightGradient } from "./mod.ts";

/** Rows that fill no whole chunk, lanes that have a vector more than others. */
const sums = { rows: 1100, columns: 268, accumulate: true }, logits = { rows: 7, columns: 1044, labelSmoothing: 0 };
const kernels: readonly Kernel[] = [
  rmsNormWeightGradient({ ...sums, type: "bf16" }),
  layerNormWeightGradient(sums),
  crossEntropyForward(logits),
  crossEntropyBackward(logits),
];

for (const kernel of kernels) {
  Deno.test(`${kernel.name} matches its reference in every form for a GPU, at odd sizes`, async () => {
    const { traits } = await testDevice(), pretend = { software: false };
    const inputs = Object.fromEntries(
      kernel.operands.filter(({ access }) => access === "read" || access === "update").map((
        { name, type, length },
        i,
      ) => [
        name,
        type === "i32" ? Array.from({ length }, (_, row) => 37 * row) : randomNormal(length, i),
      ]),
    );
    let forms: readonly string[] = ["the only one"];
    kernel.passes({ ...traits, ...pretend, choices: { of: (_question, candidates) => void (forms = candidates) } });
    // A device of small workgroups has one form of sums.
    assert(forms.length > 1 || traits.limits.maxComputeInvocationsPerWorkgroup < 1024, `${forms}`);
    for (const form of forms) {
      const choices = { of: () => form };
      await checkKernel(kernel, inputs, { traits: { ...pretend, choices } });
    }
  });
}
