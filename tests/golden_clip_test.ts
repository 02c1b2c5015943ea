/** Unscaling and clipping against InternEvo's. */
import { assertAlmostEquals } from "@std/assert";
import { gradientScale } from "../src/optimizer/clip.ts";
import { readGoldenJson } from "./golden_dir.ts";

const golden = readGoldenJson<{
  unscale_and_clip: {
    clip_grad_norm: number;
    total_norm_groups: number[];
    loss_scale: number;
    grads: number[][];
    grads_after?: number[][];
  }[];
}>("internevo", "zero_partition.json");

golden.unscale_and_clip.forEach((entry, index) => {
  Deno.test(`gradientScale() follows zero_partition.json unscale_and_clip[${index}]`, () => {
    // InternEvo's first optimizer clips each group by its own norm, as Troupe clips all by one.
    const factors = entry.total_norm_groups.map((norm) =>
      gradientScale(norm / entry.loss_scale, { lossScale: entry.loss_scale, clipGradNorm: entry.clip_grad_norm })
    );
    // ⚠: without clipping InternEvo leaves gradients scaled; here they are unscaled always.
    const expected = entry.clip_grad_norm === 0
      ? entry.grads.map((gradient) => gradient.map((value) => value / entry.loss_scale))
      : entry.grads_after!;
    entry.grads.forEach((gradient, group) =>
      gradient.forEach((value, i) => {
        const limit = 1e-6 * Math.abs(expected[group][i]) + 1e-12; // the reference divides in float32
        assertAlmostEquals(value * factors[group], expected[group][i], limit, `group ${group}, element ${i}`);
      })
    );
  });
});
