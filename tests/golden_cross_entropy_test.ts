/** Loss and its gradient against InternEvo's, by the host references and by WebGPU. */
import { assert, assertEquals } from "@std/assert";
import { crossEntropyBackward, crossEntropyForward } from "../kernels/cross_entropy/mod.ts";
import { checkKernel, compare } from "../kernels/testing.ts";
import { readGoldenJson } from "./golden_dir.ts";

interface Case {
  /** null: 0 */
  label_smoothing: number | null;
  logits: number[][][];
  labels: number[][];
  /** Mean over rows whose label is not negative. */
  loss: number | "nan";
  grad: number[][][];
}
const cases = readGoldenJson<{ cross_entropy: Case[] }>("internevo", "metrics.json").cross_entropy;

cases.forEach((golden, index) => {
  Deno.test(`cross entropy kernels follow metrics.json cross_entropy[${index}]`, async () => {
    const logits = golden.logits.flat(2), labels = golden.labels.flat(), grad = golden.grad.flat(2);
    const sizes = {
      rows: labels.length,
      columns: logits.length / labels.length,
      labelSmoothing: golden.label_smoothing ?? 0,
    };
    const count = labels.filter((label) => label >= 0).length;
    const forward = await checkKernel(crossEntropyForward(sizes), { logits, labels });
    const weight = [1 / Math.max(1, count)];
    for (const [name, values] of [["reference", forward.expected], ["WebGPU", forward.outputs]] as const) {
      const sum = (values.loss as Float32Array).reduce((total, loss) => total + loss, 0);
      if (count === 0) {
        // InternEvo divides by the number of labels. Without one there is no loss to take a mean of: each row adds 0.
        assertEquals([golden.loss, sum], ["nan", 0], name);
      } else {
        const expected = Number(golden.loss);
        assert(
          Math.abs(sum / count - expected) <= 1e-6 * Math.max(1, expected),
          `${name}: ${sum / count}, ${expected}`,
        );
      }
    }
    const { logSumExp } = forward.expected;
    const backward = await checkKernel(crossEntropyBackward(sizes), { logits, labels, logSumExp, weight });
    // Probabilities are e^(logit − logSumExp) from a logSumExp kept in f32: its last bit is their relative error.
    const tolerance = 1e-6 + 2 ** -23 * Math.max(...Array.from(logSumExp, Math.abs));
    assertEquals(compare("reference gradient", backward.expected.logits, grad, tolerance).fault, undefined);
    assertEquals(compare("WebGPU gradient", backward.outputs.logits, grad, tolerance).fault, undefined);
  });
});
