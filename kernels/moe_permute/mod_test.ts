import { checkGradient, checkKernel, floatTypes, randomNormal, randomUniform } from "../testing.ts";
import { dispatch } from "../moe_dispatch/mod.ts";
import { fromRows, rowWeightGradient, toRows } from "./mod.ts";

/** Slots and rows of a dispatch that drops some choices and leaves rows empty. */
function placed(tokens: number, experts: number, choices: number, capacity?: number) {
  const draw = randomUniform(tokens, 3);
  const choice = Uint32Array.from(
    { length: tokens * choices },
    (_, i) => (Math.floor(draw[Math.floor(i / choices)] ** 2 * experts) + i % choices) % experts,
  );
  const kernel = dispatch({ tokens, experts, choices, order: "token", ...(capacity ? { capacity } : {}) });
  const views = kernel.operands.map(({ length }) => new Uint32Array(length));
  views[0].set(choice);
  kernel.reference(views);
  return { slot: views[1], row: views[2], rows: views[2].length };
}

const cases = [
  { tokens: 1, experts: 1, choices: 1, columns: 1 },
  { tokens: 9, experts: 3, choices: 2, columns: 5 },
  { tokens: 70, experts: 4, choices: 2, columns: 64, capacity: 20 },
  { tokens: 33, experts: 8, choices: 3, columns: 260, capacity: 3 },
];

for (const type of floatTypes) {
  Deno.test(`toRows(), fromRows() and their gradients match their references in ${type}`, async () => {
    for (const { tokens, experts, choices, columns, capacity } of cases) {
      const { slot, row, rows } = placed(tokens, experts, choices, capacity);
      const size = { tokens, choices, rows, columns, type };
      const weight = randomNormal(tokens * choices, 4);
      const x = randomNormal(tokens * columns, 1), y = randomNormal(rows * columns, 2);
      await checkKernel(toRows(size), { x, row });
      await checkKernel(toRows({ ...size, weighted: true }), { x, row, weight });
      await checkKernel(fromRows(size), { x: y, slot });
      await checkKernel(fromRows({ ...size, weighted: true }), { x: y, slot, weight });
      await checkKernel(rowWeightGradient(size), { x: y, slot, dY: x });
      const large = { software: false, subgroupSize: 0 }; // the form for GPUs
      await checkKernel(rowWeightGradient(size), { x: y, slot, dY: x }, { traits: large });
    }
  });
}

Deno.test("gradients of toRows() and fromRows() match finite differences", () => {
  const { slot, row, rows } = placed(6, 3, 2, 3), size = { tokens: 6, choices: 2, rows, columns: 3 };
  const x = randomNormal(18, 1), y = randomNormal(rows * 3, 2), weight = randomNormal(12, 3);
  checkGradient(toRows(size), withSlot(fromRows(size), slot), {
    inputs: { x, row },
    operands: { x: "dy" },
    gradients: { y: "x" },
  });
  checkGradient(fromRows({ ...size, weighted: true }), rowWeightGradient(size), {
    inputs: { x: y, slot, weight },
    operands: { dY: "dy" },
    gradients: { dWeight: "weight" },
  });
  checkGradient(fromRows({ ...size, weighted: true }), withSlot(toRows({ ...size, weighted: true }), row), {
    inputs: { x: y, slot, weight },
    operands: { x: "dy" },
    gradients: { y: "x" },
  });
});

/** A kernel without the operand that the forward one does not have: it is given here. */
function withSlot(kernel: ReturnType<typeof toRows>, given: Uint32Array): ReturnType<typeof toRows> {
  const operands = kernel.operands.filter((_, index) => index !== 1);
  return { ...kernel, operands, reference: ([first, ...rest]) => kernel.reference([first, given, ...rest]) };
}
