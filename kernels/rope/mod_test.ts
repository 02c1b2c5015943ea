import { assertAlmostEquals, assertThrows } from "@std/assert";
import { checkGradient, checkKernel, floatTypes, randomNormal } from "../testing.ts";
import { rotaryTables, rotate } from "./mod.ts";

for (const type of floatTypes) {
  Deno.test(`rotate() matches its reference in ${type}`, async () => {
    for (const headDim of [2, 4, 6, 8, 40]) {
      for (const interleaved of [false, true]) {
        for (const inverse of [false, true]) {
          const tokens = 13, heads = 3, positionsLength = 9;
          const positions = Array.from({ length: tokens }, (_, i) => (i * 5) % positionsLength);
          await checkKernel(rotate({ tokens, heads, headDim, positionsLength, interleaved, inverse, type }), {
            x: randomNormal(tokens * heads * headDim, 1),
            positions,
            ...rotaryTables({ headDim, base: 10_000, length: positionsLength }),
          });
        }
      }
    }
  });
}

Deno.test("rotate() takes the last row for positions past the tables", async () => {
  await checkKernel(rotate({ tokens: 2, heads: 1, headDim: 8, positionsLength: 3, interleaved: false }), {
    x: randomNormal(16, 1),
    positions: [3, 4_000_000_000],
    ...rotaryTables({ headDim: 8, base: 100, length: 3 }),
  });
});

Deno.test("rotate() with inverse is the gradient, by finite differences", () => {
  for (const interleaved of [false, true]) {
    const sizes = { tokens: 3, heads: 2, headDim: 6, positionsLength: 4, interleaved };
    checkGradient(rotate(sizes), rotate({ ...sizes, inverse: true }), {
      inputs: {
        x: randomNormal(36, 1),
        positions: [3, 0, 2],
        ...rotaryTables({ headDim: 6, base: 50, length: 4 }),
      },
      operands: { x: "dy" },
      gradients: { y: "x" },
    });
  }
});

Deno.test("rotate() keeps scores dependent on the distance of positions alone", () => {
  const headDim = 16, positionsLength = 40;
  const { cosine, sine } = rotaryTables({ headDim, base: 10_000, length: positionsLength });
  const q = randomNormal(headDim, 1), k = randomNormal(headDim, 2);
  const turned = (x: Float32Array, position: number) => {
    const y = new Float64Array(headDim);
    rotate({ tokens: 1, heads: 1, headDim, positionsLength, interleaved: false })
      .reference([x, new Uint32Array([position]), cosine, sine, y]);
    return y;
  };
  const score = (i: number, j: number) => turned(q, i).reduce((sum, value, c) => sum + value * turned(k, j)[c], 0);
  assertAlmostEquals(score(7, 3), score(39, 35), 1e-5);
});

Deno.test("rotate() and rotaryTables() refuse an odd head dimension", () => {
  const sizes = { tokens: 1, heads: 1, headDim: 3, positionsLength: 1, interleaved: true };
  assertThrows(() => rotate(sizes), RangeError, "headDim must be even, current value is 3");
  assertThrows(() => rotaryTables({ headDim: 3, base: 10, length: 1 }), RangeError, "headDim must be even");
});
