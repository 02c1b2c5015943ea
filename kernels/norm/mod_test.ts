import { assertThrows } from "@std/assert";
import { checkGradient, checkKernel, halfTypes, randomNormal } from "../testing.ts";
import {
  layerNormBackward,
  layerNormForward,
  layerNormWeightGradient,
  rmsNormBackward,
  rmsNormForward,
  rmsNormWeightGradient,
} from "./mod.ts";

/** The form for a real GPU, whatever the device of the test. */
const hardware = { traits: { software: false } };
/** One row, one column, odd widths, vec4 widths, more rows than a group, wider than a workgroup and its registers. */
const shapes = [[1, 1], [1, 7], [5, 1], [3, 77], [37, 12], [130, 64], [2, 1028], [2, 4099], [1, 40_004]] as const;

for (const traits of [{}, hardware]) {
  const form = traits === hardware ? "as for a GPU" : "as for this device";

  Deno.test(`rmsNorm kernels match their references ${form}`, async () => {
    for (const [rows, columns] of shapes) {
      for (const unitOffset of [false, true]) {
        const x = randomNormal(rows * columns, 1), dY = randomNormal(rows * columns, 2);
        const weight = randomNormal(columns, 3);
        const { expected: { inverse } } = await checkKernel(
          // Of one column, all that is left of the gradient is the share of epsilon.
          rmsNormForward({ rows, columns, epsilon: columns === 1 ? 0.1 : 1e-5, unitOffset }),
          { x, weight },
          traits,
        );
        await checkKernel(rmsNormBackward({ rows, columns, unitOffset }), { x, weight, inverse, dY }, traits);
        const adding = rmsNormBackward({ rows, columns, unitOffset, accumulate: true });
        await checkKernel(adding, { x, weight, inverse, dY, dX: randomNormal(rows * columns, 4) }, traits);
      }
    }
  });

  Deno.test(`layerNorm kernels match their references ${form}`, async () => {
    for (const [rows, columns] of shapes) {
      // A mean far from zero, where mean(x²) − mean² would lose its digits.
      const x = randomNormal(rows * columns, 1).map((value) => value + 30), dY = randomNormal(rows * columns, 2);
      const weight = randomNormal(columns, 3), bias = randomNormal(columns, 4);
      const { expected: { mean, inverse } } = await checkKernel(
        layerNormForward({ rows, columns, epsilon: 1e-5 }),
        { x, weight, bias },
        traits,
      );
      await checkKernel(layerNormBackward({ rows, columns }), { x, weight, mean, inverse, dY }, traits);
      const adding = layerNormBackward({ rows, columns, accumulate: true });
      await checkKernel(adding, { x, weight, mean, inverse, dY, dX: randomNormal(rows * columns, 5) }, traits);
    }
  });
}

Deno.test("weight gradients match their references, written and accumulated, with and without partial sums", async () => {
  for (const [rows, columns] of [[1, 1], [1, 8], [5, 7], [64, 260], [67, 3], [1000, 12], [9001, 2]]) {
    const x = randomNormal(rows * columns, 1), dY = randomNormal(rows * columns, 2);
    const inverse = randomNormal(rows, 3), mean = randomNormal(rows, 4);
    const dWeight = randomNormal(columns, 5), dBias = randomNormal(columns, 6);
    for (const accumulate of [false, true]) {
      const rms = rmsNormWeightGradient({ rows, columns, accumulate });
      await checkKernel(rms, { x, inverse, dY, ...(accumulate && { dWeight }) });
      const layer = layerNormWeightGradient({ rows, columns, accumulate });
      await checkKernel(layer, { x, mean, inverse, dY, ...(accumulate && { dWeight, dBias }) });
    }
  }
});

for (const type of halfTypes) {
  Deno.test(`norm kernels match their references in ${type}, with weights in ${type} and in f32`, async () => {
    for (const [rows, columns] of [[1, 1], [1, 7], [5, 3], [37, 12], [2, 1028], [3, 77]]) {
      const x = randomNormal(rows * columns, 1).map((value) => value + 3), dY = randomNormal(rows * columns, 2);
      const weight = randomNormal(columns, 3), bias = randomNormal(columns, 4);
      // As in f32 above: of one column little is left of the gradient.
      const epsilon = columns === 1 ? 0.1 : 1e-5;
      for (const options of [{}, hardware]) {
        for (const weightType of ["f32", type] as const) {
          const sizes = { rows, columns, type, weightType };
          const rms = await checkKernel(rmsNormForward({ ...sizes, epsilon }), { x, weight }, options);
          const dX = randomNormal(rows * columns, 5), toRms = { x, weight, inverse: rms.expected.inverse, dY };
          await checkKernel(rmsNormBackward(sizes), toRms, options);
          await checkKernel(rmsNormBackward({ ...sizes, accumulate: true }), { ...toRms, dX }, options);
          const layer = await checkKernel(layerNormForward({ ...sizes, epsilon }), { x, weight, bias }, options);
          const { mean, inverse } = layer.expected;
          if (columns > 1) await checkKernel(layerNormBackward(sizes), { x, weight, mean, inverse, dY }, options);
        }
      }
    }
  });

  Deno.test(`weight gradients of ${type} streams match their references in f32`, async () => {
    for (const [rows, columns] of [[1, 1], [5, 7], [67, 3], [1000, 12]]) {
      const x = randomNormal(rows * columns, 1), dY = randomNormal(rows * columns, 2);
      const inverse = randomNormal(rows, 3), mean = randomNormal(rows, 4);
      const dWeight = randomNormal(columns, 5), dBias = randomNormal(columns, 6), accumulate = true;
      await checkKernel(rmsNormWeightGradient({ rows, columns, accumulate, type }), { x, inverse, dY, dWeight });
      const layer = layerNormWeightGradient({ rows, columns, accumulate, type });
      await checkKernel(layer, { x, mean, inverse, dY, dWeight, dBias });
    }
  });
}

Deno.test("rmsNormForward() takes more rows than an axis of workgroups holds", async () => {
  const rows = 65_537, columns = 1;
  const x = randomNormal(rows, 1), weight = [2];
  await checkKernel(rmsNormForward({ rows, columns, epsilon: 1e-5 }), { x, weight }, hardware);
});

Deno.test("rmsNormForward() stays finite for rows that are nearly zero", async () => {
  const x = new Float32Array(12).fill(1e-18), weight = new Float32Array(4).fill(1);
  const { expected: { inverse } } = await checkKernel(rmsNormForward({ rows: 3, columns: 4, epsilon: 1e-30 }), {
    x,
    weight,
  });
  await checkKernel(rmsNormBackward({ rows: 3, columns: 4 }), { x, weight, inverse, dY: randomNormal(12, 1) });
});

Deno.test("rmsNorm gradients match finite differences", () => {
  const rows = 3, columns = 5;
  const inputs = { x: randomNormal(rows * columns, 1), weight: randomNormal(columns, 2) };
  const options = { inputs, operands: { dY: "dy" } };
  for (const unitOffset of [false, true]) {
    const forward = rmsNormForward({ rows, columns, epsilon: 1e-3, unitOffset });
    checkGradient(forward, rmsNormBackward({ rows, columns, unitOffset }), { ...options, gradients: { dX: "x" } });
    const weightGradient = rmsNormWeightGradient({ rows, columns, accumulate: true });
    checkGradient(forward, weightGradient, { ...options, gradients: { dWeight: "weight" } });
  }
});

Deno.test("layerNorm gradients match finite differences", () => {
  const rows = 3, columns = 5;
  const inputs = {
    x: randomNormal(rows * columns, 1),
    weight: randomNormal(columns, 2),
    bias: randomNormal(columns, 3),
  };
  const options = { inputs, operands: { dY: "dy" } };
  const forward = layerNormForward({ rows, columns, epsilon: 1e-3 });
  checkGradient(forward, layerNormBackward({ rows, columns }), { ...options, gradients: { dX: "x" } });
  const weightGradient = layerNormWeightGradient({ rows, columns, accumulate: false });
  checkGradient(forward, weightGradient, { ...options, gradients: { dWeight: "weight", dBias: "bias" } });
});

Deno.test("norm factories refuse sizes that are not positive whole numbers", () => {
  assertThrows(
    () => rmsNormForward({ rows: 0, columns: 4, epsilon: 1e-5 }),
    RangeError,
    "rows must be a whole number of at least 1, current value is 0",
  );
  assertThrows(() => layerNormBackward({ rows: 2, columns: 2.5 }), RangeError, "columns");
});
