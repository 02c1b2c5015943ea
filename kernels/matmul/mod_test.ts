import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import type { DeviceTraits, Kernel } from "../kernel.ts";
import { checkKernel, randomNormal } from "../testing.ts";
import { matmul, type MatmulOptions } from "./mod.ts";
import { naivePasses } from "./naive.ts";
import type { MatmulShape } from "./shape.ts";

/** Traits that lead to the form for GPUs, whatever the device at hand. */
const gpu: Partial<DeviceTraits> = { software: false };
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

for (const [form, traits] of [["on this device", undefined], ["as a GPU would", gpu]] as const) {
  Deno.test(`matmul() matches its reference with every transpose, ${form}`, async () => {
    for (const transpose of transposes) {
      await check({ m: 40, n: 72, k: 48, ...transpose }, traits); // multiples of 8
      await check({ m: 37, n: 45, k: 19, ...transpose }, traits); // of nothing
      await check({ m: 36, n: 68, k: 44, ...transpose }, traits); // of 4 but not of the tiles
      await check({ m: 3, n: 7, k: 9, batch: 3, ...transpose }, traits);
    }
  });

  Deno.test(`matmul() matches its reference with every epilogue, ${form}`, async () => {
    for (const epilogue of epilogues) {
      await check({ m: 9, n: 36, k: 12, batch: 2, transposeB: true, ...epilogue }, traits);
      await check({ m: 9, n: 35, k: 13, batch: 2, ...epilogue }, traits);
    }
  });

  Deno.test(`matmul() matches its reference at size one, ${form}`, async () => {
    for (const transpose of transposes) {
      await check({ m: 1, n: 1, k: 1, ...transpose }, traits);
      await check({ m: 1, n: 33, k: 5, ...transpose }, traits);
    }
  });
}

Deno.test("matmul() splits long sums of a small product, and adds up the parts", async () => {
  for (const epilogue of epilogues) {
    for (const n of [24, 23]) {
      const options = { m: 20, n, k: 1100, batch: 2, transposeA: true, ...epilogue };
      assertEquals(matmul(options).operands.at(-1)?.access, "scratch");
      await check(options, gpu);
      await check(options);
    }
  }
});

Deno.test("matmul() uses its larger tiles as a GPU would", async () => {
  await check({ m: 260, n: 130, k: 34, batch: 32, transposeB: true }, gpu);
  await check({ m: 128, n: 28, k: 32, batch: 160 }, gpu);
  await check({ m: 130, n: 132, k: 20, batch: 125, transposeB: true, accumulate: true }, gpu);
  await check({ m: 130, n: 132, k: 20, batch: 125, residual: true }, gpu);
});

Deno.test("naivePasses() matches the reference", async () => {
  for (const transpose of transposes) {
    const kernel = matmul({ m: 5, n: 6, k: 7, batch: 2, bias: true, residual: true, accumulate: true, ...transpose });
    const shape: MatmulShape = {
      m: 5,
      n: 6,
      k: 7,
      batch: 2,
      bias: true,
      residual: true,
      accumulate: true,
      ...transpose,
    };
    await checkKernel({ ...kernel, passes: () => naivePasses(shape, kernel.operands) }, inputsOf(kernel), {
      tolerance,
    });
  }
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
