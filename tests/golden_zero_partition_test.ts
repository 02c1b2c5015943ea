/** Division of optimizer state, buckets of gradients and squared norms against InternEvo's. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { squaredNorm } from "../kernels/reduce/mod.ts";
import { checkKernel } from "../kernels/testing.ts";
import { flatteningOrder, partitionBySize, planReductions } from "../src/optimizer/zero_partition.ts";
import { readGoldenJson } from "./golden_dir.ts";

const golden = readGoldenJson<{
  partition: {
    shapes: number[][];
    zero_size: number;
    params_of_rank: number[][];
    plan_ids: string[][];
    numel_of_rank: number[];
    ranks_without_params: number[];
  }[];
  buckets: {
    shapes_default_group: number[][];
    shapes_fp32_group: number[][];
    param_without_grad: number | null;
    reduce_bucket_size: number;
    reductions: { group: number; numel: number[]; bucket_size: number }[];
  }[];
  compute_norm: { grads: (number | string)[][]; norm_type: number | string; result: number }[];
}>("internevo", "zero_partition.json");

const count = (shape: number[]) => shape.reduce((product, size) => product * size, 1);

golden.partition.forEach((entry, index) => {
  const { shapes, zero_size } = entry;
  Deno.test(`partitionBySize() follows partition[${index}]: ${shapes.length} parameters, ${zero_size} ranks`, () => {
    const counts = shapes.map(count), owned = partitionBySize(counts, zero_size);
    assertEquals(owned, entry.params_of_rank);
    assertEquals(owned.map((indices) => indices.reduce((sum, i) => sum + counts[i]!, 0)), entry.numel_of_rank);
    assertEquals(owned.flatMap((indices, rank) => indices.length === 0 ? [rank] : []), entry.ranks_without_params);
    // InternEvo names what a rank owns by its place in this order, and its dimensions.
    const order = flatteningOrder(counts);
    assertEquals(
      owned.map((indices) => indices.map((i) => [order.indexOf(i), ...shapes[i]].join("_"))),
      entry.plan_ids,
    );
  });
});

golden.buckets.forEach((entry, index) => {
  Deno.test(`planReductions() follows buckets[${index}]: ${entry.reduce_bucket_size} elements`, () => {
    // ⚠: InternEvo lets a gradient be missing, and fails when it flattens; here the graph gives every parameter one.
    const counts = [
      entry.shapes_default_group.filter((_, i) => i !== entry.param_without_grad).map(count),
      entry.shapes_fp32_group.map(count),
    ];
    // ⚠: InternEvo reduces an empty bucket where the first gradient is larger than one; here nothing is sent.
    const expected = entry.reductions.filter(({ numel }) => numel.length > 0);
    assertEquals(
      planReductions(counts, entry.reduce_bucket_size).map(({ group, parameters, elements }) => ({
        group,
        numel: parameters.map((i) => counts[group]![i]),
        bucket_size: elements,
      })),
      expected,
    );
  });
});

// InternEvo's function has other powers, which its optimizer never asks for.
golden.compute_norm.forEach(({ grads, norm_type, result }, index) => {
  if (norm_type !== 2) return;
  Deno.test(`squaredNorm() follows compute_norm[${index}]`, async () => {
    // All in one length, as what is no gradient in an arena is 0: a text to compile for all.
    const x = new Float32Array(16);
    x.set(grads.flat().map((value) => typeof value === "number" ? value : Number(value.replace("inf", "Infinity"))));
    const { expected, outputs } = await checkKernel(squaredNorm({ length: x.length }), { x });
    for (const { out: [sum] } of [expected, outputs]) {
      // InternEvo's marks for what is not finite
      if (result === -1) assertEquals(sum, Infinity);
      else if (result === -2) assert(Number.isNaN(sum));
      else assertAlmostEquals(sum, result, Math.abs(result) * 1e-6); // it squares the rounded root again
    }
  });
});
