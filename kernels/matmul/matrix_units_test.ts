import { assert, assertEquals } from "@std/assert";
import { nullDawn } from "../../src/backend/webgpu/_testing.ts";
import { audited } from "../audit.ts";
import type { FloatType } from "../host.ts";
import { hostTraits } from "../../src/backend/cpu/backend.ts";
import type { DeviceTraits, Kernel } from "../kernel.ts";
import { emulatedMatrix } from "../matrix_unit.ts";
import { auditing, checkKernel, randomNormal, testDevice } from "../testing.ts";
import { matmul, type MatmulOptions } from "./mod.ts";
import { matrixTiles, type MatrixTiling, matrixTiling, matrixUnitPasses } from "./matrix_units.ts";
import { shapeOf } from "./shape.ts";

const ofType = (type: FloatType): Partial<MatmulOptions> =>
  type === "f32" ? { split: true } : { types: { a: type, b: type } };

/** The form with matrix units played by plain WGSL, in small tiles; for how a product is cut, not for real units. */
function emulated(options: MatmulOptions, tiling: Partial<MatrixTiling>): Kernel {
  const kernel = matmul(options), shape = shapeOf(options);
  const { depth = 16 } = tiling;
  const whole: MatrixTiling = {
    rows: 32,
    columns: 64,
    subgroupRows: 16,
    subgroupColumns: 32,
    depth,
    parts: options.split ? 2 : 1,
    chunk: 32,
    splits: 1,
    partDepth: Math.ceil(options.k / depth) * depth,
    together: 2,
    ...tiling,
  };
  const passes = (traits: DeviceTraits) => matrixUnitPasses(shape, kernel.operands, traits, emulatedMatrix, whole);
  return { ...kernel, passes };
}

function inputsOf(kernel: Kernel, scale = 1): Record<string, Float32Array> {
  return Object.fromEntries(
    kernel.operands
      .filter(({ access }) => access === "read" || access === "update")
      .map(({ name, length }, i) => [name, randomNormal(length, i + 1).map((v) => v * (name === "a" ? scale : 1))]),
  );
}

/** Products of halves are exact; what is split in two loses 2^-22 of an operand, 2^-21 where a device cuts off. */
const toleranceOf = (type: FloatType) => type === "f32" ? 2e-6 : 1e-6;

for (const type of ["f16", "bf16", "f32"] as const) {
  Deno.test(`matrixUnitPasses() cuts products of ${type} into tiles as their reference says`, async () => {
    const cases: [MatmulOptions, Partial<MatrixTiling>][] = [
      [{ m: 37, n: 45, k: 19 }, {}], // multiples of nothing
      // Whole tiles, their lines stored in another order.
      [{ m: 64, n: 64, k: 96, transposeB: true, batch: 2 }, { rows: 64, subgroupRows: 32, depth: 32 }],
      [{ m: 72, n: 40, k: 64, transposeA: true, bias: true, residual: true, accumulate: true }, {
        depth: 32,
        rows: 48,
        subgroupRows: 48,
      }],
      [{ m: 33, n: 35, k: 140, transposeA: true, transposeB: true, accumulate: true }, {}],
    ];
    // Types differ in how tiles are filled, not in how they are cut.
    for (const [options, tiling] of type === "f16" ? cases : [cases[0], cases[3]]) {
      const kernel = emulated({ ...options, ...ofType(type) }, tiling);
      await checkKernel(kernel, inputsOf(kernel), { tolerance: toleranceOf(type) });
    }
  });
}

Deno.test("matrixUnitPasses() splits the depth where C is small", async () => {
  const options = { m: 20, n: 24, k: 1100, transposeA: true, accumulate: true, types: { a: "f16", b: "f16" } } as const;
  assertEquals(matmul(options).operands.at(-1)?.name, "partial");
  const kernel = emulated(options, { splits: 3, partDepth: 368 });
  await checkKernel(kernel, inputsOf(kernel), { tolerance: 2e-6 });
});

Deno.test("matrixUnitPasses() keeps products of tiny and of huge elements, which f16 cannot hold", async () => {
  for (const scale of [1e-30, 1e30]) {
    const kernel = emulated({ m: 16, n: 32, k: 40, split: true }, {});
    await checkKernel(kernel, inputsOf(kernel, scale), { tolerance: toleranceOf("f32") });
  }
  // Elements of very different sizes: relative to the operand's largest one, nothing is lost.
  const kernel = emulated({ m: 16, n: 32, k: 40, split: true }, {}), inputs = inputsOf(kernel);
  inputs.a = inputs.a.map((value, i) => value * 10 ** -(i % 9));
  await checkKernel(kernel, inputs, { tolerance: toleranceOf("f32") });
});

Deno.test("matrixUnitPasses() hands on what is not finite", async () => {
  const kernel = emulated({ m: 16, n: 32, k: 40, split: true }, {}); // the text of the test before
  for (const value of [Infinity, NaN]) {
    const inputs = inputsOf(kernel);
    inputs.a[3] = value;
    const { outputs } = await checkKernel(kernel, inputs, { tolerance: Infinity });
    assert([...outputs.c].slice(0, 32).every((sum) => !Number.isFinite(sum)), String(value));
  }
});

for (const tile of matrixTiles) {
  const { rows, columns, subgroupRows } = tile;
  Deno.test(`matrixUnitPasses() stays in its arrays with tiles of ${rows} x ${columns}, as they ship`, async () => {
    if (!auditing) return console.log("skipped: its texts compile for long; deno task audit has it");
    const cases: [FloatType, Partial<MatmulOptions>][] = [["f16", {}], ["f16", { transposeB: true }], ["f16", {
      transposeA: true,
      accumulate: true,
    }]];
    // Other types have one tile.
    if (rows === 128 && columns === 128 && subgroupRows === 64) cases.push(["bf16", {}], ["f32", { transposeA: true }]);
    for (const [type, transposes] of cases) {
      for (const sizes of [{ m: rows + 5, n: columns + 12, k: 40 }, { m: rows, n: columns, k: 64 }]) {
        const options = { ...sizes, ...transposes, ...ofType(type) }, parts = options.split ? 2 : 1;
        const kernel = emulated(options, matrixTiling(shapeOf(options), tile, parts, 1));
        await checkKernel(kernel, inputsOf(kernel), { tolerance: toleranceOf(type) });
      }
    }
  });
}

Deno.test("matmul() on matrix units matches its reference, where the device has them", async () => {
  const { features, description } = (await testDevice()).traits;
  if (!features.matrixUnits) return console.log(`skipped: ${description} shows no matrix units`);
  for (const type of ["f16", "bf16", "f32"] as const) {
    for (const transposeA of [false, true]) {
      for (const transposeB of [false, true]) {
        for (
          const sizes of [{ m: 256, n: 384, k: 96 }, { m: 133, n: 77, k: 45, batch: 2 }, { m: 40, n: 72, k: 1500 }]
        ) {
          const kernel = matmul({ ...sizes, transposeA, transposeB, ...ofType(type) });
          // Sums are cut off, not rounded: an error that grows with their length.
          await checkKernel(kernel, inputsOf(kernel), { tolerance: type === "f32" ? 4e-6 : 1e-5 });
        }
      }
    }
  }
});

Deno.test("matmul() for Dawn's matrix units is a text that Dawn compiles", async () => {
  const device = await nullDawn();
  if (typeof device === "string") return console.log(`skipped: ${device}`);
  const traits: DeviceTraits = {
    ...hostTraits,
    provider: "dawn",
    subgroupSize: 32,
    features: { subgroups: true, shaderF16: true, timestampQuery: true, matrixUnits: true },
  };
  for (const type of ["f16", "bf16", "f32"] as const) {
    for (
      const sizes of [
        { m: 37, n: 45, k: 19 },
        { m: 256, n: 128, k: 4096, accumulate: true, transposeA: true },
        { m: 8192, n: 8192, k: 64 }, // the tallest tile
      ]
    ) {
      const kernel = matmul({ ...sizes, ...ofType(type) });
      for (const { code } of [...kernel.passes(traits), ...audited(kernel).passes(traits)]) {
        const { messages } = await device.createShaderModule({ code }).getCompilationInfo();
        assertEquals(messages.map(({ message, lineNum }) => `${lineNum}: ${message}`), []);
      }
    }
  }
  device.destroy();
});
