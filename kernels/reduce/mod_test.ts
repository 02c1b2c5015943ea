import { assertEquals } from "@std/assert";
import { checkKernel, floatTypes, halfTypes, randomNormal } from "../testing.ts";
import { columnSum, squaredNorm } from "./mod.ts";

for (const [i, [rows, columns]] of [[1, 1], [3, 7], [32, 12], [33, 5], [131, 65], [2100, 8], [70, 260]].entries()) {
  for (const [j, type] of floatTypes.entries()) {
    // Texts take long to compile here: where lines are no vectors, a shape has one of the half types.
    if (columns % 4 !== 0 && j === 1 + i % 2) continue;
    Deno.test(`columnSum() of ${rows} x ${columns} ${type} matches its reference`, async () => {
      const x = randomNormal(rows * columns, 1).map((value) => value + 0.5);
      // Every other type accumulates, at the next shape the others.
      const accumulate = (i + j) % 2 === 0, y = accumulate && { y: randomNormal(columns, 2) };
      await checkKernel(columnSum({ rows, columns, accumulate, type }), { x, ...y }, { tolerance: 1e-6 });
    });
  }
}

Deno.test("columnSum() by whole lines, as on a GPU, matches its reference", async () => {
  for (const [rows, columns, accumulate] of [[1024, 2048, false], [1100, 2052, true]] as const) {
    const x = randomNormal(rows * columns, 1).map((value) => value + 0.5), y = { y: randomNormal(columns, 2) };
    const options = { tolerance: 1e-6, traits: { software: false } };
    await checkKernel(columnSum({ rows, columns, accumulate }), { x, ...(accumulate && y) }, options);
  }
});

// 1,050,003 needs more than one round of 1,024 groups and ends in the middle of a vector.
for (const length of [1, 3, 4, 255, 1024, 1025, 4100, 1_050_003, 1_100_004]) {
  Deno.test(`squaredNorm() of ${length} matches its reference and repeats bit for bit`, async () => {
    const x = randomNormal(length, 3);
    const first = await checkKernel(squaredNorm({ length }), { x }, { tolerance: 1e-6 });
    const second = await checkKernel(squaredNorm({ length }), { x }, { tolerance: 1e-6 });
    assertEquals(first.outputs.out[0], second.outputs.out[0]);
  });
}

for (const type of halfTypes) {
  Deno.test(`squaredNorm() of ${type} matches its reference`, async () => {
    for (const length of [1, 3, 1025, 4100, 20_003]) {
      await checkKernel(squaredNorm({ length, type }), { x: randomNormal(length, 3) }, { tolerance: 1e-6 });
    }
  });
}

for (const value of [Infinity, -Infinity, NaN]) {
  Deno.test(`squaredNorm() is not finite when one element is ${value}`, async () => {
    for (const length of [1027, 4096]) {
      for (const type of floatTypes) {
        const x = randomNormal(length, 4);
        x[length - 2] = value;
        const { outputs } = await checkKernel(squaredNorm({ length, type }), { x });
        assertEquals(Number.isFinite(outputs.out[0]), false);
      }
    }
  });
}
