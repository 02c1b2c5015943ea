import { assertThrows } from "@std/assert";
import { checkKernel, halfTypes, randomNormal } from "../testing.ts";
import { groupedMatmul, groupedOuter } from "./mod.ts";

/** Groups of one row, of none, of just a tile, of more; rows at the end that are no group's. */
const cases = [
  { rows: 7, n: 5, k: 3, offset: [0, 0, 1, 4, 4, 6] },
  { rows: 200, n: 67, k: 21, offset: [0, 3, 131, 131, 190] },
  { rows: 9, n: 70, k: 2, offset: [0, 0, 0, 0] },
  // Rows of whole vectors, groups that end within a block.
  { rows: 61, n: 12, k: 20, offset: [0, 3, 31, 31, 50] },
];
const gpu = { software: false };

Deno.test("groupedMatmul() matches its reference in every form", async () => {
  for (const [i, { rows, n, k, offset }] of cases.entries()) {
    const groups = offset.length - 1, a = randomNormal(rows * k, 1), b = randomNormal(groups * n * k, 2);
    for (const transposeB of [false, true]) {
      const kernel = groupedMatmul({ rows, groups, n, k, transposeB });
      await checkKernel(kernel, { a, b, offset });
      // Tiles take long to compile here: the groups of each pair of cases both ways.
      if (transposeB === (i % 2 === 0)) await checkKernel(kernel, { a, b, offset }, { traits: gpu });
    }
  }
});

Deno.test("groupedOuter() matches its reference, written and added to, in every form", async () => {
  for (const [i, { rows, n, k, offset }] of cases.entries()) {
    const groups = offset.length - 1, a = randomNormal(rows * n, 1), b = randomNormal(rows * k, 2);
    const c = randomNormal(groups * n * k, 3);
    // Each case is written by one form and added to by the other.
    for (const [j, traits] of [{}, gpu].entries()) {
      const accumulate = (i + j) % 2 === 1;
      const kernel = groupedOuter({ rows, groups, n, k, accumulate });
      await checkKernel(kernel, { a, b, offset, ...(accumulate && { c }) }, { traits });
    }
  }
});

Deno.test("groupedMatmul() passes over what rows of no group hold", async () => {
  const a = Float32Array.of(1, 2, NaN, Infinity), b = Float32Array.of(3, 5), offset = [0, 1, 2];
  await checkKernel(groupedMatmul({ rows: 4, groups: 2, n: 1, k: 1, transposeB: true }), { a, b, offset });
  await checkKernel(groupedOuter({ rows: 4, groups: 2, n: 1, k: 1 }), { a, b: a, offset });
});

for (const type of halfTypes) {
  Deno.test(`products by group store operands as ${type}`, async () => {
    for (const [{ rows, n, k, offset }, traits] of [[cases[1], {}], [cases[1], gpu], [cases[3], {}]] as const) {
      const groups = offset.length - 1, types = { a: type, b: type };
      const a = randomNormal(rows * k, 1), b = randomNormal(groups * n * k, 2), dY = randomNormal(rows * n, 3);
      const forward = groupedMatmul({ rows, groups, n, k, transposeB: true, types: { ...types, c: type } });
      await checkKernel(forward, { a, b, offset }, { traits });
      await checkKernel(groupedOuter({ rows, groups, n, k, types }), { a: dY, b: a, offset }, { traits });
    }
  });
}

Deno.test("groupedMatmul() refuses sizes of nothing", () => {
  assertThrows(() => groupedMatmul({ rows: 1, groups: 0, n: 1, k: 1 }), RangeError, "groups");
});
