import { assert, assertEquals } from "@std/assert";
import { matmul, productByNumbers } from "./reference.ts";
import { type MatmulOptions, shapeOf } from "./shape.ts";
import { deepestProduct, productByVectors, vectorProductModule } from "./vector_product.ts";

/** Numbers of all magnitudes, some of which are none. */
const drawn = (seed: number, length: number) =>
  Float32Array.from({ length }, (_, i) => {
    if (i % 997 === 500 && i < 2000) return [Infinity, -Infinity, -0, 1e-42, 3.4e38, NaN][(i + seed) % 6];
    return Math.sin((i + 1) * (seed + 1.5)) * 10 ** ((i * 7 + seed) % 30 - 15);
  });

Deno.test("the module is one, and small", () => {
  assert(WebAssembly.validate(vectorProductModule()));
  assert(vectorProductModule().length < 1024);
});

const sizes: readonly MatmulOptions[] = [
  { m: 1, n: 1, k: 1 },
  { m: 3, n: 5, k: 7, batch: 3 },
  { m: 4, n: 4, k: 64 },
  { m: 37, n: 18, k: 33, bias: true, residual: true },
  { m: 9, n: 30, k: 5, batch: 2, accumulate: true },
  { m: 6, n: 300, k: 600 }, // columns in two pieces
  { m: 130, n: 3, k: 20_000 }, // rows in two pieces
];
for (const transposes of [{}, { transposeA: true }, { transposeB: true }, { transposeA: true, transposeB: true }]) {
  Deno.test(`sums by vectors have the bits of sums one by one, ${JSON.stringify(transposes)}`, () => {
    for (const size of sizes) {
      const shape = shapeOf({ ...size, ...transposes }), { m, n, k, batch } = shape;
      const inputs = [
        drawn(1, batch * m * k),
        drawn(2, batch * k * n),
        ...(shape.bias ? [drawn(3, n)] : []),
        ...(shape.residual ? [drawn(4, batch * m * n)] : []),
      ];
      const [expected, sums] = [productByNumbers, productByVectors].map((product) => {
        const c = drawn(5, batch * m * n);
        matmul(shape, [...inputs, c], product);
        return c;
      });
      assert(expected.some((sum) => Number.isFinite(sum) && sum !== 0));
      assertEquals(sums, expected, JSON.stringify(shape)); // 0 is not -0
    }
  });
}

Deno.test("sums by vectors of doubles are those of doubles", () => {
  const a = Float64Array.of(1, 2 ** -40), b = Float64Array.of(1, 1), c = new Float64Array(1);
  matmul(shapeOf({ m: 1, n: 1, k: 2 }), [a, b, c], productByVectors);
  assertEquals(c[0], 1 + 2 ** -40);
});

Deno.test("sums of no terms are zeros, and of no rows there are none", () => {
  const c = new Float32Array(4).fill(7);
  matmul(shapeOf({ m: 2, n: 2, k: 0 }), [new Float32Array(0), new Float32Array(0), c]);
  assertEquals(c, new Float32Array(4));
  matmul(shapeOf({ m: 0, n: 2, k: 2 }), [new Float32Array(0), new Float32Array(4), new Float32Array(0)]);
});

Deno.test("what is too deep for the vectors' memory is summed without them", () => {
  const k = deepestProduct + 1, ones = new Float32Array(k).fill(1), c = new Float32Array(1);
  matmul(shapeOf({ m: 1, n: 1, k }), [ones, ones, c]);
  assertEquals(c[0], k);
  matmul(shapeOf({ m: 1, n: 1, k: k - 1 }), [ones, ones, c]);
  assertEquals(c[0], k - 1);
});
