import { assertAlmostEquals, assertEquals } from "@std/assert";
import { gradientScale } from "./clip.ts";

Deno.test("gradientScale() takes the loss scale off, never raises gradients and does not clip at 0", () => {
  assertEquals(gradientScale(0.1, { lossScale: 4, clipGradNorm: 1 }), 0.25);
  assertEquals(gradientScale(1e9, { lossScale: 8, clipGradNorm: 0 }), 0.125);
  assertEquals(gradientScale(0, { lossScale: 1, clipGradNorm: 1 }), 1);
  assertAlmostEquals(gradientScale(10, { lossScale: 1, clipGradNorm: 1 }), 1 / 10.000001, 1e-15);
});

Deno.test("gradientScale() leaves a norm of clipGradNorm", () => {
  const gradients = [3, 4].map((value) => 8 * value);
  const scale = gradientScale(5, { lossScale: 8, clipGradNorm: 2 });
  assertAlmostEquals(Math.hypot(...gradients.map((value) => value * scale)), 2, 1e-6);
});
