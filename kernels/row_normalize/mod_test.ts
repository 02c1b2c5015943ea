import { assertEquals } from "@std/assert";
import { checkGradient, checkKernel, floatTypes, randomNormal } from "../testing.ts";
import { rowNormalizeBackward, rowNormalizeForward } from "./mod.ts";

for (const software of [true, false]) {
  for (const type of floatTypes) {
    Deno.test(`rowNormalize kernels match their references in ${type}, software ${software}`, async () => {
      for (const [i, [rows, columns]] of [[1, 1], [1, 5], [7, 1], [33, 20], [2, 1111]].entries()) {
        // Texts take long to compile here: where lines are no vectors, a form has one of the half types at a shape, at the
        // next the other.
        const turn = floatTypes.indexOf(type) + Number(software);
        if (type !== "f32" && columns % 4 !== 0 && (i + turn) % 2 !== 0) continue;
        const w = randomNormal(rows * columns, 1),
          dY = randomNormal(rows * columns, 2),
          dW = randomNormal(rows * columns, 3);
        const options = { traits: { software }, tolerance: 1e-5 };
        const { expected } = await checkKernel(rowNormalizeForward({ rows, columns, type }), { w }, options);
        const { y, inverse } = expected;
        // Every other shape accumulates, of the other form the others.
        const accumulate = ((type === "f32" ? i : i >> 1) + turn) % 2 === 0;
        const gradientType = accumulate ? type : "f32";
        const kernel = rowNormalizeBackward({ rows, columns, accumulate, type, gradientType });
        await checkKernel(kernel, { y, inverse, dY, ...(accumulate && { dW }) }, options);
      }
    });
  }

  Deno.test(`rowNormalize kernels match their references below the smallest norm, software ${software}`, async () => {
    const rows = 2, columns = 8, options = { traits: { software } };
    const w = new Float32Array(rows * columns).fill(1e-14, columns); // the first row is all zeros
    const { expected: { y, inverse } } = await checkKernel(rowNormalizeForward({ rows, columns }), { w }, options);
    const dY = randomNormal(rows * columns, 2);
    await checkKernel(rowNormalizeBackward({ rows, columns, accumulate: false }), { y, inverse, dY }, options);
  });
}

Deno.test("rowNormalizeBackward() matches finite differences", () => {
  const rows = 3, columns = 4;
  for (const accumulate of [false, true]) {
    checkGradient(rowNormalizeForward({ rows, columns }), rowNormalizeBackward({ rows, columns, accumulate }), {
      inputs: { w: randomNormal(rows * columns, 1) },
      operands: { dY: "dy" },
      gradients: { dW: "w" },
    });
  }
});

Deno.test("rowNormalizeBackward() passes the gradient straight through below the smallest norm", () => {
  const w = new Float64Array([1e-13, -2e-13]), y = new Float64Array(2), inverse = new Float64Array(1);
  rowNormalizeForward({ rows: 1, columns: 2 }).reference([w, y, inverse]);
  assertEquals(inverse[0], 1e12);
  const dW = new Float64Array(2);
  rowNormalizeBackward({ rows: 1, columns: 2, accumulate: false }).reference([
    y,
    inverse,
    new Float64Array([1, 2]),
    dW,
  ]);
  assertEquals([...dW], [1e12, 2e12]);
});
