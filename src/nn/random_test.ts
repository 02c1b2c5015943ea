import { assert, assertAlmostEquals, assertEquals, assertNotEquals } from "@std/assert";
import { initialTensor, namedStream } from "./random.ts";

const take = (seed: number, name: string, count: number) => {
  const next = namedStream(seed, name);
  return Array.from({ length: count }, next);
};

Deno.test("namedStream() depends on the seed and the name alone", () => {
  assertEquals(take(1024, "layers.0.attention.q.weight", 8), take(1024, "layers.0.attention.q.weight", 8));
  const streams = [
    take(1024, "layers.0.attention.q.weight", 8),
    take(1025, "layers.0.attention.q.weight", 8),
    take(1024, "layers.1.attention.q.weight", 8),
    take(1024, "layers.0.attention.k.weight", 8),
    take(0, "", 8),
  ];
  assertEquals(new Set(streams.map((stream) => stream.join())).size, streams.length);
});

Deno.test("namedStream() fills 32 bits evenly", () => {
  const draws = take(7, "a", 64_000);
  for (const draw of draws) assert(Number.isInteger(draw) && draw >= 0 && draw < 2 ** 32);
  for (let bit = 0; bit < 32; bit++) {
    const ones = draws.reduce((sum, draw) => sum + ((draw >>> bit) & 1), 0);
    assertAlmostEquals(ones, draws.length / 2, 5 * Math.sqrt(draws.length) / 2, `bit ${bit}`);
  }
});

Deno.test("initialTensor() draws what the initialization asks for", () => {
  const length = 40_001, options = { seed: 3, name: "w", length };
  assertEquals([...new Set(initialTensor({ kind: "constant", value: 0.25 }, options))], [0.25]);

  const normal = initialTensor({ kind: "normal", std: 0.02 }, options);
  const mean = normal.reduce((sum, value) => sum + value, 0) / length;
  const variance = normal.reduce((sum, value) => sum + (value - mean) ** 2, 0) / length;
  const kurtosis = normal.reduce((sum, value) => sum + (value - mean) ** 4, 0) / length / variance ** 2;
  assertAlmostEquals(mean, 0, 5 * 0.02 / Math.sqrt(length));
  assertAlmostEquals(Math.sqrt(variance), 0.02, 5 * 0.02 / Math.sqrt(2 * length));
  assertAlmostEquals(kurtosis, 3, 5 * Math.sqrt(24 / length));

  const uniform = initialTensor({ kind: "uniform", bound: 0.3 }, options);
  const largest = uniform.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  assert(largest <= 0.3 && largest > 0.299);
  const square = uniform.reduce((sum, value) => sum + value ** 2, 0) / length;
  assertAlmostEquals(square, 0.03, 5 * 0.03 / Math.sqrt(length));
});

Deno.test("initialTensor() gives a tensor's slice the values of the whole", () => {
  for (const kind of [{ kind: "normal", std: 1 }, { kind: "uniform", bound: 1 }] as const) {
    const whole = initialTensor(kind, { seed: 5, name: "w", length: 101 });
    for (const length of [1, 2, 7, 100]) {
      assertEquals(initialTensor(kind, { seed: 5, name: "w", length }), whole.slice(0, length));
    }
    assertNotEquals(initialTensor(kind, { seed: 6, name: "w", length: 101 }), whole);
  }
});
