import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { clipFactor, unscaleAndClip } from "./clip.ts";

Deno.test("clipFactor() never raises gradients and is off at 0", () => {
  assertEquals(clipFactor(0.1, 1), 1);
  assertEquals(clipFactor(1e9, 0), 1);
  assertAlmostEquals(clipFactor(10, 1), 1 / 10.000001, 1e-15);
});

Deno.test("unscaleAndClip() leaves a global norm of clipGradNorm", () => {
  const { norms, globalNorm, factors } = unscaleAndClip({
    squaredNorms: [9 * 64, 16 * 64],
    lossScale: 8,
    clipGradNorm: 1,
  });
  assertEquals(norms, [3, 4]);
  assertEquals(globalNorm, 5);
  assertEquals(factors[0], factors[1]);
  assertAlmostEquals(Math.hypot(24 * factors[0], 32 * factors[1]), 1, 1e-6);
});

Deno.test("unscaleAndClip() clips each group alone where asked", () => {
  const { factors } = unscaleAndClip({ squaredNorms: [9, 0.25], lossScale: 1, clipGradNorm: 1, scope: "group" });
  assertAlmostEquals(3 * factors[0], 1, 1e-6);
  assertEquals(factors[1], 1);
});

Deno.test("unscaleAndClip() tells overflow from not-a-number and gives factor 0 for both", () => {
  const infinite = unscaleAndClip({ squaredNorms: [1, Infinity], lossScale: 2, clipGradNorm: 1 });
  const nan = unscaleAndClip({ squaredNorms: [NaN, 1], lossScale: 2, clipGradNorm: 0 });
  assert(!infinite.finite && infinite.overflow && !nan.finite && !nan.overflow);
  assertEquals([infinite.factors, nan.factors], [[0, 0], [0, 0]]);
});

Deno.test("unscaleAndClip() refuses a loss scale of 0 and a negative limit", () => {
  assertThrows(() => unscaleAndClip({ squaredNorms: [1], lossScale: 0, clipGradNorm: 1 }), RangeError, "loss scale");
  assertThrows(
    () => unscaleAndClip({ squaredNorms: [1], lossScale: 1, clipGradNorm: -1 }),
    RangeError,
    "clip_grad_norm",
  );
});
