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
  // Texts take long to compile here: at every shape one form writes its gradient, and the other adds to one.
  const adds = (place: number) => (place % 2 === 0) === (traits === hardware);

  Deno.test(`rmsNorm kernels match their references ${form}`, async () => {
    for (const [i, [rows, columns]] of shapes.entries()) {
      // Every other shape, of either width of loads, has an offset.
      const unitOffset = i % 2 === 1, x = randomNormal(rows * columns, 1), dY = randomNormal(rows * columns, 2);
      const weight = randomNormal(columns, 3);
      const { expected: { inverse } } = await checkKernel(
        // Of one column, all that is left of the gradient is the share of epsilon.
        rmsNormForward({ rows, columns, epsilon: columns === 1 ? 0.1 : 1e-5, unitOffset }),
        { x, weight },
        traits,
      );
      const accumulate = adds(i), dX = randomNormal(rows * columns, 4);
      const backward = rmsNormBackward({ rows, columns, unitOffset: unitOffset === accumulate, accumulate });
      await checkKernel(backward, { x, weight, inverse, dY, ...(accumulate && { dX }) }, traits);
    }
  });

  Deno.test(`layerNorm kernels match their references ${form}`, async () => {
    // Rows are spread over lanes as those of rmsNorm, which has every shape: short ones and long ones, of vectors and not.
    const own = traits === hardware
      ? [[1, 7], [130, 64], [2, 4099], [1, 40_004]]
      : [[3, 77], [37, 12], [2, 4099], [1, 40_004]];
    for (const [i, [rows, columns]] of own.entries()) {
      // A mean far from zero, where mean(x²) − mean² would lose its digits.
      const x = randomNormal(rows * columns, 1).map((value) => value + 30), dY = randomNormal(rows * columns, 2);
      const weight = randomNormal(columns, 3), bias = randomNormal(columns, 4);
      const { expected: { mean, inverse } } = await checkKernel(
        layerNormForward({ rows, columns, epsilon: 1e-5 }),
        { x, weight, bias },
        traits,
      );
      const accumulate = adds(i), given = { x, weight, mean, inverse, dY };
      const dX = randomNormal(rows * columns, 5);
      await checkKernel(
        layerNormBackward({ rows, columns, accumulate }),
        { ...given, ...(accumulate && { dX }) },
        traits,
      );
    }
  });
}

Deno.test("weight gradients match their references, written and accumulated, with and without partial sums", async () => {
  for (const [i, [rows, columns]] of [[1, 1], [1, 8], [5, 7], [64, 260], [67, 3], [1000, 12], [9001, 2]].entries()) {
    const x = randomNormal(rows * columns, 1), dY = randomNormal(rows * columns, 2);
    const inverse = randomNormal(rows, 3), mean = randomNormal(rows, 4);
    const dWeight = randomNormal(columns, 5), dBias = randomNormal(columns, 6);
    // One writes where the other accumulates, at the next shape the other way round.
    const accumulate = i % 2 === 0;
    const rms = rmsNormWeightGradient({ rows, columns, accumulate });
    await checkKernel(rms, { x, inverse, dY, ...(accumulate && { dWeight }) });
    const layer = layerNormWeightGradient({ rows, columns, accumulate: !accumulate });
    await checkKernel(layer, { x, mean, inverse, dY, ...(!accumulate && { dWeight, dBias }) });
  }
});

for (const type of halfTypes) {
  Deno.test(`norm kernels match their references in ${type}, with weights in ${type} and in f32`, async () => {
    // Twice words that two rows share, and twice vectors; rows of one column are tested in f32. Of each two, and of this
    // device and a GPU, every form has weights of its own type once, and adds once.
    for (const [i, [rows, columns]] of [[1, 7], [37, 12], [3, 77], [2, 1028]].entries()) {
      const x = randomNormal(rows * columns, 1).map((value) => value + 3), dY = randomNormal(rows * columns, 2);
      const weight = randomNormal(columns, 3), bias = randomNormal(columns, 4), epsilon = 1e-5;
      for (const [j, options] of [{}, hardware].entries()) {
        const own = (i >> 1) % 2 === j, accumulate = (i + (i >> 1)) % 2 === j;
        const sizes = { rows, columns, type, weightType: own ? type : "f32" } as const;
        const rms = await checkKernel(rmsNormForward({ ...sizes, epsilon }), { x, weight }, options);
        const toRms = { x, weight, inverse: rms.expected.inverse, dY };
        const backward = rmsNormBackward({ ...sizes, accumulate });
        await checkKernel(backward, { ...toRms, ...(accumulate && { dX: randomNormal(rows * columns, 5) }) }, options);
        // Rows are spread over lanes as those of rmsNorm: one shape of words and one of vectors for each type.
        if ((i === 0 || i === 3) !== (type === "f16")) continue;
        const layer = await checkKernel(layerNormForward({ ...sizes, epsilon }), { x, weight, bias }, options);
        const { mean, inverse } = layer.expected;
        await checkKernel(layerNormBackward(sizes), { x, weight, mean, inverse, dY }, options);
      }
    }
  });

  Deno.test(`weight gradients of ${type} streams match their references in f32`, async () => {
    for (const [rows, columns] of [[5, 7], [1000, 12]]) {
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
