import {
  assertAlmostEquals,
  assertEquals,
  assertLess,
  assertMatch,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import type { DeviceTraits, Kernel } from "../kernel.ts";
import { checkKernel, halfTypes, randomNormal, storageError, testDevice } from "../testing.ts";
import { matmul, type MatmulOptions } from "./mod.ts";
import { shapeOf } from "./shape.ts";
import { type Tile, tilingOf, workgroupTilePasses } from "./workgroup_tiles.ts";

/** Traits that lead to the form for GPUs, whatever the device at hand. */
const gpu: Partial<DeviceTraits> = { software: false };
const allFeatures = { subgroups: true, shaderF16: true, timestampQuery: false, matrixUnits: false };
const tolerance = 2e-5;

function inputsOf(kernel: Kernel): Record<string, Float32Array> {
  return Object.fromEntries(
    kernel.operands
      .filter(({ access }) => access === "read" || access === "update")
      .map(({ name, length }, i) => [name, randomNormal(length, i + 1)]),
  );
}

async function check(options: MatmulOptions, traits?: Partial<DeviceTraits>) {
  const kernel = matmul(options);
  await checkKernel(kernel, inputsOf(kernel), { tolerance, ...(traits && { traits }) });
}

/**
 * Tiles that are cut as those that ship, which the tests "as a GPU would" take. Texts have the depth of a tile unrolled, and
 * take as long to compile: these are shorter, one less deep than ships, the other filled in one round.
 */
const flat: Tile = { rows: 32, columns: 32, blockRows: 4, blockColumns: 4, depth: 8 };
const wide: Tile = { rows: 64, columns: 64, blockRows: 4, blockColumns: 4, depth: 16 };

/** The product in tiles like this, the depth in as many parts as there is scratch for. */
function inTile(options: MatmulOptions, tile: Tile & { readonly run?: number }): Kernel {
  const kernel = matmul(options), terms = tile.depth * (tile.run ?? 1), { splits } = tilingOf({ batch: 1, ...options });
  const tiling = { ...tile, splits, partDepth: Math.ceil(options.k / splits / terms) * terms };
  return {
    ...kernel,
    passes: (traits) => workgroupTilePasses(shapeOf(options), kernel.operands, { ...traits, ...gpu }, tiling),
  };
}

async function checkTile(options: MatmulOptions, tile: Tile & { readonly run?: number }, allowed = tolerance) {
  const kernel = inTile(options, tile);
  await checkKernel(kernel, inputsOf(kernel), { tolerance: allowed });
}

const transposes = [false, true].flatMap((transposeA) =>
  [false, true].map((transposeB) => ({ transposeA, transposeB }))
);
const epilogues: readonly Partial<MatmulOptions>[] = [
  {},
  { accumulate: true },
  { bias: true },
  { residual: true },
  { accumulate: true, bias: true, residual: true },
];

for (const inTiles of [false, true]) {
  const form = inTiles ? "in tiles for GPUs" : "on this device";
  const checkIn = (options: MatmulOptions, tile: Tile) => inTiles ? checkTile(options, tile) : check(options);

  Deno.test(`matmul() matches its reference with every transpose, ${form}`, async () => {
    for (const transpose of transposes) {
      await checkIn({ m: 37, n: 45, k: 19, batch: 3, ...transpose }, wide); // multiples of nothing
      await checkIn({ m: 36, n: 68, k: 44, ...transpose }, flat); // of 4 but not of the tiles
    }
    await checkIn({ m: 40, n: 72, k: 48, transposeB: true }, flat); // of 8
    await checkIn({ m: 40, n: 72, k: 48, transposeA: true }, flat);
  });

  Deno.test(`matmul() matches its reference with every epilogue, ${form}`, async () => {
    // Texts take long to compile here: all parts of an epilogue at both widths of loads, each alone at one.
    for (const [i, epilogue] of epilogues.entries()) {
      const all = i === epilogues.length - 1;
      if (all || i % 2 === 1) await checkIn({ m: 9, n: 36, k: 12, batch: 2, transposeB: true, ...epilogue }, flat);
      if (all || i % 2 === 0) await checkIn({ m: 9, n: 35, k: 13, batch: 2, ...epilogue }, flat);
    }
  });
}

for (const [form, traits] of [["on this device", undefined], ["as a GPU would", gpu]] as const) {
  Deno.test(`matmul() matches its reference at size one, ${form}`, async () => {
    for (const [i, transpose] of transposes.entries()) {
      await check({ m: 1, n: i % 3 === 0 ? 1 : 33, k: i % 3 === 0 ? 1 : 5, ...transpose }, traits);
    }
  });
}

Deno.test("matmul() takes its taller tiles for large products, whole ones and not", async () => {
  await check({ m: 72, n: 1096, k: 860, residual: true }); // 35 tiles of columns: no band divides them
  await check({ m: 65, n: 1025, k: 1010, transposeA: true, transposeB: true });
});

Deno.test("matmul() splits long sums of a small product, and adds up the parts", async () => {
  for (const [i, epilogue] of epilogues.entries()) {
    // The pass that adds up the parts has the epilogue, and vectors or none.
    const options = { m: 20, n: i % 2 === 0 ? 24 : 23, k: 1100, batch: 2, transposeA: true, ...epilogue };
    assertEquals(matmul(options).operands.at(-1)?.access, "scratch");
    await (i === 0 ? check(options, gpu) : checkTile(options, flat)); // one as it ships
  }
  await check({ m: 20, n: 23, k: 1100, batch: 2, transposeA: true, ...epilogues.at(-1) });
});

Deno.test("matmul() uses its larger tiles as a GPU would", async () => {
  await check({ m: 260, n: 130, k: 34, batch: 32, transposeB: true }, gpu);
  await check({ m: 128, n: 28, k: 32, batch: 160 }, gpu);
  // Those of the largest products; run in half their depth, which compiles in half the time, and fewer times.
  const tall = { rows: 64, columns: 128, blockRows: 8, blockColumns: 8, depth: 16 }, square = { ...tall, rows: 128 };
  const largest = [
    [tall, { transposeB: true, accumulate: true }],
    [square, { transposeA: true, residual: true }],
  ] as const;
  for (const [{ depth, ...tile }, options] of largest) {
    const sizes = { m: 130, n: 132, k: 20, ...options }, traits = { ...(await testDevice()).traits, ...gpu };
    const [{ code }] = matmul({ ...sizes, batch: 125 }).passes(traits);
    for (const [side, outer] of [["A", tile.rows], ["B", tile.columns]]) {
      assertStringIncludes(code, `tile${side}: array<array<vec4f, ${Number(outer) / 4 + 1}>, ${depth}>`);
    }
    await checkTile({ ...sizes, batch: 3 }, { ...tile, depth: depth / 2 });
  }
});

for (const type of halfTypes) {
  /** What a linear layer is made of: its product, and the gradients of what it read and of its weight. */
  const uses: readonly (Omit<MatmulOptions, "m" | "n" | "k">)[] = [
    { transposeB: true, bias: true, residual: true, types: { a: type, b: type, bias: type, residual: type, c: type } },
    { types: { a: type, b: type, c: type } },
    { transposeA: true, accumulate: true, types: { a: type, b: type } },
    // Streams and heads that are kept in float32.
    { transposeB: true, residual: true, types: { a: type, b: type } },
    { transposeB: true, types: { b: type, c: type } },
  ];
  for (const inTiles of [false, true]) {
    const form = inTiles ? "in tiles for GPUs" : "on this device";
    Deno.test(`matmul() of ${type} operands sums in f32 and rounds once, ${form}`, async () => {
      // Texts take long to compile here: each use has either vectors on every side, or words that two rows share, and of the
      // other type the other way round.
      for (const [i, use] of uses.entries()) {
        const vectors = (i % 2 === 0) === (type === "f16");
        const options = { ...(vectors ? { m: 36, n: 68, k: 44 } : { m: 37, n: 45, k: 19, batch: 3 }), ...use };
        await (inTiles ? checkTile(options, vectors ? flat : wide) : check(options));
      }
      const split = { m: 20, n: 23, k: 1100, ...uses[2] }; // where the device is a GPU
      await (inTiles ? checkTile(split, flat) : check(split));
    });
  }

  Deno.test(`matmul() of ${type} operands keeps sums that ${type} could not`, async () => {
    // 4096 terms of one: a sum in a half type stops at 2048 or 256.
    const kernel = matmul({ m: 3, n: 4, k: 4096, transposeB: true, types: { a: type, b: type } });
    const ones = { a: new Float32Array(3 * 4096).fill(1), b: new Float32Array(4 * 4096).fill(1) };
    const { outputs } = await checkKernel(kernel, ones, { tolerance: storageError.f32 });
    assertEquals([...outputs.c], Array(12).fill(4096));
  });
}

Deno.test("matmul() of packed f16 is off by less than a thousandth at any depth, by root mean square", async () => {
  const types = { a: "f16", b: "f16", c: "f32" } as const;
  const sizes = [[40, 72, 512], [37, 45, 19], [130, 66, 48], [33, 36, 70]];
  for (const [at, transpose] of transposes.entries()) {
    const [m, n, k] = sizes[at], options = { m, n, k, ...transpose, types, packed: true };
    // One as it ships.
    const kernel = at === 0 ? matmul(options) : inTile(options, { ...flat, run: 2 });
    const [{ code }] = kernel.passes({ ...(await testDevice()).traits, features: allFeatures, ...gpu });
    assertMatch(code, /h0_0 = fma\(a0_0.xy, b0_0.xy, h0_0\)/);
    const { outputs, expected } = await checkKernel(kernel, inputsOf(kernel), { tolerance: 6e-3, traits: gpu });
    const squares = (values: Iterable<number>) => [...values].reduce((sum, value) => sum + value ** 2, 0);
    const error = squares(expected.c.map((value, i) => outputs.c[i] - value)) / squares(expected.c);
    assertLess(Math.sqrt(error), 1e-3);
  }
  // Each sum of 32 terms is exact in f16; their sum is not.
  const ones = matmul({ m: 4, n: 4, k: 4096, types, packed: true });
  const { outputs } = await checkKernel(ones, { a: Array(4 * 4096).fill(1), b: Array(4 * 4096).fill(1) }, {
    traits: gpu,
  });
  assertEquals([...outputs.c], Array(16).fill(4096));
});

/** The larger tile of packed products a quarter as deep, which compiles as much sooner. */
const shortPacked = { rows: 64, columns: 64, blockRows: 8, blockColumns: 4, depth: 8, run: 2 };

Deno.test("matmul() of packed f16 uses its larger tile as a GPU would", async () => {
  const packed = { types: { a: "f16", b: "f16", c: "f32" }, packed: true } as const;
  const options = { m: 132, n: 140, k: 36, transposeB: true, accumulate: true, ...packed };
  const traits = { ...(await testDevice()).traits, features: allFeatures, ...gpu };
  const [{ code }] = matmul({ ...options, batch: 43 }).passes(traits);
  assertStringIncludes(code, "tileA: array<array<array<vec4<f16>, 2>, 17>, 16>"); // 64 lines of 32 terms
  await checkTile(options, shortPacked, 6e-3);
});

Deno.test("matmul() of packed f16 cuts its larger tile where nothing is a multiple of it, either side across the depth", async () => {
  const packed = { types: { a: "f16", b: "f16", c: "f32" }, packed: true } as const;
  const options = { m: 130, n: 131, k: 97, transposeA: true, residual: true, ...packed };
  await checkTile(options, shortPacked, 6e-3);
});

Deno.test("matmul() refuses f16 where the device has none, and says what works", () => {
  const kernel = matmul({ m: 4, n: 4, k: 4, types: { a: "f16" } });
  const without = { software: false, features: { shaderF16: false }, limits: {} } as DeviceTraits;
  assertThrows(() => kernel.passes(without), TypeError, "operand a as f16: the device has no shader-f16; bf16");
});

Deno.test("matmul() has a reference that sums by definition", () => {
  const m = 3, n = 5, k = 4, batch = 2;
  const a = randomNormal(batch * m * k, 1), b = randomNormal(batch * k * n, 2);
  for (const { transposeA, transposeB } of transposes) {
    const c = new Float64Array(batch * m * n);
    matmul({ m, n, k, batch, transposeA, transposeB }).reference([a, b, c]);
    for (let z = 0; z < batch; z++) {
      for (let i = 0; i < m; i++) {
        for (let j = 0; j < n; j++) {
          let sum = 0;
          for (let p = 0; p < k; p++) {
            sum += a[z * m * k + (transposeA ? p * m + i : i * k + p)] *
              b[z * k * n + (transposeB ? j * k + p : p * n + j)];
          }
          assertAlmostEquals(c[(z * m + i) * n + j], sum, 1e-12);
        }
      }
    }
  }
});

Deno.test("matmul() refuses sizes that are no positive whole numbers", () => {
  assertThrows(() => matmul({ m: 0, n: 1, k: 1 }), RangeError, "m must be a whole number of at least 1");
  assertThrows(() => matmul({ m: 1, n: 1, k: 1.5 }), RangeError, "current value is 1.5");
});
