import { assertThrows } from "@std/assert";
import { checkGradient, checkKernel, floatTypes, randomNormal } from "../testing.ts";
import { rowScaleBackward, rowScaleForward } from "./mod.ts";

for (const type of floatTypes) {
  Deno.test(`row scale kernels match their references in ${type}`, async () => {
    for (const [rows, columns, ways, way] of [[5, 3, 2, 1], [33, 260, 1, 0]]) {
      const x = randomNormal(rows * columns, 1), dY = randomNormal(rows * columns, 2);
      const factor = randomNormal(rows * ways, 3).map((z) => 4 * z);
      for (const sigmoid of [false, true]) {
        const sizes = { rows, columns, ways, way, sigmoid, type };
        for (const traits of [{}, { software: false, subgroupSize: 0 }]) {
          await checkKernel(rowScaleForward(sizes), { x, factor }, { traits });
          await checkKernel(rowScaleBackward(sizes), { x, factor, dY }, { traits });
        }
      }
    }
  });
}

Deno.test("rowScaleBackward() matches finite differences", () => {
  for (const sigmoid of [false, true]) {
    const sizes = { rows: 3, columns: 5, ways: 2, way: 1, sigmoid };
    checkGradient(rowScaleForward(sizes), rowScaleBackward(sizes), {
      inputs: { x: randomNormal(15, 1), factor: randomNormal(6, 2) },
      operands: { dY: "dy" },
      gradients: { dX: "x", dFactor: "factor" },
    });
  }
});

Deno.test("rowScaleForward() refuses a way that is not there", () => {
  assertThrows(
    () => rowScaleForward({ rows: 1, columns: 1, ways: 2, way: 2, sigmoid: false }),
    RangeError,
    "0 to 1",
  );
});
