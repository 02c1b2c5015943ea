import { assert, assertEquals, assertThrows } from "@std/assert";
import { AccPerplex } from "./metrics.ts";
import { roundTo } from "./round.ts";

const tokens = (nll: number[], correct: number[], labels: number[], typeIds?: number[]) => ({
  nll: Float32Array.from(nll),
  correct: Uint32Array.from(correct),
  labels: Int32Array.from(labels),
  ...(typeIds ? { typeIds: Uint32Array.from(typeIds) } : {}),
});

Deno.test("roundTo() rounds ties to even and everything else to the nearest", () => {
  assertEquals([1 / 32, 3 / 32, -1 / 32].map((x) => roundTo(x, 4)), [0.0312, 0.0938, -0.0312]);
  assertEquals([0.125, 0.375, 2.675, 0.12345].map((x) => roundTo(x, 2)), [0.12, 0.38, 2.67, 0.12]);
  assertEquals(roundTo(-Infinity, 2), -Infinity);
});

Deno.test("AccPerplex.add() ignores unlabelled tokens whatever they hold", () => {
  const metric = new AccPerplex();
  metric.add(tokens([1, NaN, 3], [1, 1, 0], [4, -100, 9]));
  assertEquals(metric.state(), [1, 2, 4]);
  assertEquals(metric.tokens, 2);
});

Deno.test("AccPerplex.report() is NaN before any token", () => {
  assert(Number.isNaN(new AccPerplex().report().perplexity));
});

Deno.test("AccPerplex leaves its sums alone when a micro-batch is refused", () => {
  const metric = new AccPerplex({ typeNames: ["en"] });
  assertThrows(() => metric.add(tokens([1], [1], [1])), TypeError, "typeIds");
  assertThrows(() => metric.add(tokens([1, 1], [1, 1], [1, 1], [0, 1])), RangeError, "found 1 at token 1");
  assertThrows(() => metric.add(tokens([1, 2], [1], [1], [0])), TypeError, "2, 1, 1, 1");
  assertThrows(() => metric.merge([1, 2, 3]), TypeError, "found 3");
  assertEquals(metric.state(), [0, 0, 0, 0, 0, 0]);
});
