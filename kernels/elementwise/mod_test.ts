import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { checkGradient, checkKernel, randomNormal, testDevice } from "../testing.ts";
import { pcg4d } from "./counter_random.ts";
import { add, addInPlace, dropout, scale } from "./mod.ts";

for (const length of [1, 4, 255, 1028, 4099]) {
  Deno.test(`add(), addInPlace() and scale() match their references at length ${length}`, async () => {
    const a = randomNormal(length, 1);
    const b = randomNormal(length, 2);
    await checkKernel(add({ length }), { a, b }, { tolerance: 0 });
    await checkKernel(addInPlace({ length }), { x: a, y: b }, { tolerance: 0 });
    await checkKernel(scale({ length, factor: -0.3 }), { x: a }, { tolerance: 0 });
  });

  Deno.test(`dropout() drops the same elements on host and device at length ${length}`, async () => {
    const x = randomNormal(length, 3);
    const counter = [0xfedc_ba98, 17];
    await checkKernel(dropout({ length, rate: 0.1, layer: 5 }), { x, counter }, { tolerance: 1e-7 });
  });
}

Deno.test("add() and dropout() spread more workgroups than an axis has", async () => {
  const length = 2051;
  const { limits } = (await testDevice()).traits;
  const traits = { limits: { ...limits, maxComputeWorkgroupsPerDimension: 4 } };
  const a = randomNormal(length, 1);
  assertEquals(add({ length }).passes({ ...(await testDevice()).traits, ...traits })[0].workgroups, [3, 3, 1]);
  await checkKernel(add({ length }), { a, b: a }, { tolerance: 0, traits });
  await checkKernel(dropout({ length: 4 * length, rate: 0.5, layer: 1 }), {
    x: randomNormal(4 * length, 2),
    counter: [1, 2],
  }, { tolerance: 1e-7, traits });
});

Deno.test("dropout() on the gradient of y is the gradient of x", () => {
  const forward = dropout({ length: 37, rate: 0.3, layer: 2 });
  const inputs = { x: randomNormal(37, 4), counter: [9, 3] };
  checkGradient(forward, forward, { inputs, operands: { x: "dy" }, gradients: { y: "x" } });
});

function dropped(length: number, rate: number, layer: number, counter: [number, number]): boolean[] {
  const y = new Float32Array(length);
  dropout({ length, rate, layer }).reference([new Float32Array(length).fill(1), Uint32Array.from(counter), y]);
  return Array.from(y, (value) => value === 0);
}

Deno.test("dropout() drops its share and keeps the mean", () => {
  const length = 40_000;
  const rate = 0.25;
  const mask = dropped(length, rate, 0, [1, 1]);
  // Five standard deviations of a binomial share.
  assertAlmostEquals(mask.filter(Boolean).length / length, rate, 5 * Math.sqrt((rate * (1 - rate)) / length));
  const y = new Float32Array(4);
  dropout({ length: 4, rate: 0, layer: 0 }).reference([new Float32Array([1, 2, 3, 4]), new Uint32Array(2), y]);
  assertEquals([...y], [1, 2, 3, 4]);
});

Deno.test("dropout() has independent masks for each seed, step, layer and neighbour", () => {
  const length = 20_000;
  const mask = dropped(length, 0.5, 0, [1, 1]);
  const others = [
    dropped(length, 0.5, 1, [1, 1]),
    dropped(length, 0.5, 0, [1, 2]),
    dropped(length, 0.5, 0, [2, 1]),
    [...mask.slice(1), mask[0]],
    [...mask.slice(4), ...mask.slice(0, 4)],
  ];
  for (const other of others) {
    const equal = mask.filter((drop, i) => drop === other[i]).length / length;
    assertAlmostEquals(equal, 0.5, 5 * Math.sqrt(0.25 / length));
  }
});

Deno.test("dropout() refuses a rate outside [0, 1)", () => {
  for (const rate of [-0.1, 1, NaN]) assertThrows(() => dropout({ length: 4, rate, layer: 0 }), RangeError, "[0, 1)");
});

Deno.test("pcg4d() uses all of its four words", () => {
  const outputs = new Set([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    .flatMap(([x, y, z, w]) => pcg4d(x, y, z, w)));
  assertEquals(outputs.size, 20);
  assert([...outputs].every((word) => Number.isInteger(word) && word >= 0 && word < 2 ** 32));
});
