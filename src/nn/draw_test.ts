import { assertEquals, assertRejects } from "@std/assert";
import { type Draw, drawTensors } from "./draw.ts";
import { initialTensor } from "./random.ts";

const draws: readonly Draw[] = [
  { name: "a", initialization: { kind: "normal", std: 0.02 }, length: 1003 },
  { name: "b", initialization: { kind: "constant", value: 1 }, length: 7 },
  { name: "c", initialization: { kind: "uniform", bound: 0.1 }, length: 40_000 },
  { name: "d", initialization: { kind: "normal", std: 1 }, length: 5 },
];

for (const threads of [1, 3]) {
  Deno.test(`drawTensors() hands over every tensor once, drawn as alone, with ${threads} threads`, async () => {
    const drawn = new Map<number, Float32Array>();
    await drawTensors(draws, {
      seed: 5,
      threads,
      take(index, values) {
        assertEquals(drawn.has(index), false);
        drawn.set(index, values);
      },
    });
    draws.forEach(({ initialization, name, length }, index) =>
      assertEquals(drawn.get(index), initialTensor(initialization, { seed: 5, name, length }))
    );
  });

  Deno.test(`drawTensors() ends with what take() throws, with ${threads} threads`, async () => {
    const take = () => {
      throw new RangeError("no room");
    };
    await assertRejects(() => drawTensors(draws, { seed: 5, threads, take }), RangeError, "no room");
  });
}

Deno.test("drawTensors() tells why a thread ended", async () => {
  const bad = [{ name: "a", initialization: { kind: "uniform", bound: 1 }, length: -1 }, draws[0]!] as const;
  await assertRejects(() => drawTensors(bad, { seed: 5, threads: 2, take: () => {} }), Error, "typed array length");
});
