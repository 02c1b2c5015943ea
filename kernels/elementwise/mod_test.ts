import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { checkGradient, checkKernel, floatTypes, halfTypes, randomNormal, testDevice } from "../testing.ts";
import { decode, encode } from "../host.ts";
import { pcg4d } from "./counter_random.ts";
import { add, addInPlace, cast, dropout, fill, multiply, scale } from "./mod.ts";

// Less than a word of halves, vectors for more than a workgroup, and words for many that end in half of one.
for (const length of [1, 1028, 4099]) {
  for (const type of floatTypes) {
    Deno.test(`add(), multiply(), addInPlace() and scale() match their references at length ${length} in ${type}`, async () => {
      const a = randomNormal(length, 1);
      const b = randomNormal(length, 2);
      await checkKernel(add({ length, type }), { a, b }, { tolerance: 0 });
      await checkKernel(multiply({ length, type }), { a, b }, { tolerance: 0 });
      await checkKernel(addInPlace({ length, type }), { x: a, y: b }, { tolerance: 0 });
      await checkKernel(addInPlace({ length, type: "f32", addendType: type }), { x: a, y: b }, { tolerance: 0 });
      await checkKernel(scale({ length, factor: -0.3, type }), { x: a }, { tolerance: 0 });
    });

    Deno.test(`dropout() drops the same elements on host and device at length ${length} in ${type}`, async () => {
      const x = randomNormal(length, 3);
      const counter = [0xfedc_ba98, 17];
      const kernel = dropout({ length, rate: 0.1, layer: 5, type });
      const { outputs, expected } = await checkKernel(kernel, { x, counter }, { tolerance: 1e-7 });
      outputs.y.forEach((value, i) => assertEquals(value === 0, expected.y[i] === 0));
    });

    Deno.test(`cast() from and to ${type} matches its reference at length ${length}`, async () => {
      const x = randomNormal(length, 6).map((value, i) => value * 2 ** (i % 17 - 8));
      for (const other of floatTypes) {
        await checkKernel(cast({ length, from: type, to: other }), { x }, { tolerance: 0 });
      }
    });
  }
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

for (const type of halfTypes) {
  // Both forms: vectors of four, and halves that share a word.
  for (const odd of [0, 1]) {
    Deno.test(`cast() reads every ${type} as the host does, odd ${odd}`, async () => {
      const x = decode(type, Uint16Array.from({ length: 65_536 - odd }, (_, i) => i));
      const { outputs } = await checkKernel(cast({ length: x.length, from: type, to: "f32" }), { x }, { tolerance: 0 });
      assertEquals(outputs.y, x);
    });

    Deno.test(`cast() rounds to ${type} bit for bit as the host does, odd ${odd}`, async () => {
      // Every number of the type, the ties above and what is just beside them: the largest becomes infinity.
      const exact = decode(type, Uint16Array.from({ length: 65_536 }, (_, i) => i));
      const next = decode(type, Uint16Array.from({ length: 65_536 }, (_, i) => i + 1));
      const between = exact.map((value, i) => value + (next[i] - value) / 2);
      const beside = between.map((value, i) => value + (next[i] - value) / 64);
      const limits = [65_519, 65_520, 3.3961775e38, 3.3961776e38, 1e-45, -0, Infinity, -Infinity, NaN, 1e10, -1e10];
      const x = Float32Array.from([...exact, ...between, ...beside, ...limits, ...new Array(1 + odd).fill(1)]);
      assertEquals(x.length % 4, odd);
      const { outputs } = await checkKernel(cast({ length: x.length, from: "f32", to: type }), { x }, {
        tolerance: Infinity,
      });
      assertEquals(outputs.y, decode(type, encode(type, x)));
    });
  }

  Deno.test(`add() in ${type} leaves the padding of an odd length as it was`, async () => {
    const length = 7, backend = await testDevice();
    if (type === "f16" && !backend.traits.features.shaderF16) {
      console.log(`not tested: add() in f16, as ${backend.traits.description} has no shader-f16`);
      return;
    }
    const filled = (label: string) => {
      const buffer = backend.allocate(16, label);
      const range = { buffer, offset: 0, bytes: 16 };
      backend.upload(range, Uint16Array.from({ length: 8 }, (_, i) => encode(type, [i])[0]));
      return range;
    };
    const ranges = ["a", "b", "y"].map(filled);
    backend.submit(await backend.prepare([{ kind: "dispatch", kernel: add({ length, type }), ranges }]));
    const ticket = backend.read([ranges[2]]);
    await ticket.ready();
    const [bytes] = ticket.take();
    await backend.finish();
    assertEquals([...decode(type, new Uint16Array(bytes.buffer))], [0, 2, 4, 6, 8, 10, 12, 7]);
    for (const { buffer } of ranges) backend.release(buffer);
  });
}

Deno.test("kernels refuse f16 where the device has none, and take bf16", async () => {
  const { traits } = await testDevice(), without = { ...traits, features: { ...traits.features, shaderF16: false } };
  assertThrows(
    () => scale({ length: 5, factor: 2, type: "f16" }).passes(without),
    TypeError,
    "operand x as f16: the device has no shader-f16; bf16 and f32 work",
  );
  const x = randomNormal(5, 1);
  await checkKernel(scale({ length: 5, factor: 2, type: "bf16" }), { x }, { traits: without });
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

Deno.test("dropout() of a part drops what dropout() of the whole drops there", async () => {
  const length = 64, counter = [3, 9], x = randomNormal(length, 1);
  const whole = (await checkKernel(dropout({ length, rate: 0.5, layer: 2 }), { x, counter })).outputs.y;
  for (const [firstElement, count] of [[0, 32], [32, 32], [16, 13], [13, 20], [30, 4], [63, 1]]) {
    const kernel = dropout({ length: count, rate: 0.5, layer: 2, firstElement });
    const { outputs } = await checkKernel(kernel, { x: x.slice(firstElement, firstElement + count), counter });
    assertEquals(outputs.y, whole.slice(firstElement, firstElement + count), `from ${firstElement}`);
  }
});

Deno.test("fill() writes one value everywhere", async () => {
  for (const length of [1, 7, 256]) await checkKernel(fill({ length, value: 0 }), {});
});

Deno.test("what is past the largest float16 is stored as infinity of its sign, by vectors and one by one", async () => {
  const edge = [65504, 65519.996, -65519.996, 65520, -65520, 65536, 1e30, -3.4e38, Infinity, -Infinity, NaN, 0];
  for (const length of [edge.length, edge.length - 1]) {
    const x = edge.slice(-length);
    const kernel = cast({ length, from: "f32", to: "f16" }), options = { tolerance: Infinity };
    const { outputs } = await checkKernel(kernel, { x }, options); // the reference's results are not rounded
    assertEquals([...outputs.y], [...new Float32Array(new Float16Array(x))]);
  }
});
