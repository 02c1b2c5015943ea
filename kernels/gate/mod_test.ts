import { assertAlmostEquals, assertLess, assertThrows } from "@std/assert";
import { checkGradient, checkKernel, floatTypes, randomNormal } from "../testing.ts";
import { type Activation, gateBackward, gateForward, pairedGateBackward, pairedGateForward } from "./mod.ts";
import { erf } from "./reference.ts";

const activations: readonly Activation[] = ["silu", "gelu", "gelu_tanh"];

for (const type of floatTypes) {
  Deno.test(`gate kernels match their references in ${type}`, async () => {
    for (const activation of activations) {
      // Activations differ in a formula alone, which vectors and single elements have alike.
      for (const length of activation === "silu" ? [1, 3, 256, 1030, 2052] : [3, 2052]) {
        const gate = randomNormal(length, 1).map((x) => 3 * x),
          up = randomNormal(length, 2),
          dY = randomNormal(length, 3);
        await checkKernel(gateForward({ length, activation, type }), { gate, up });
        await checkKernel(gateBackward({ length, activation, type }), { gate, up, dY });
      }
    }
  });
}

for (const type of floatTypes) {
  Deno.test(`gate kernels of halves side by side match their references in ${type}`, async () => {
    for (const [rows, columns] of [[1, 1], [3, 5], [5, 260]] as const) {
      const sizes = { rows, columns, activation: "silu", type } as const;
      const x = randomNormal(2 * rows * columns, 1), dY = randomNormal(rows * columns, 2);
      await checkKernel(pairedGateForward(sizes), { x });
      await checkKernel(pairedGateBackward(sizes), { x, dY });
    }
  });
}

Deno.test("pairedGateBackward() matches finite differences", () => {
  const sizes = { rows: 3, columns: 2, activation: "gelu" } as const;
  checkGradient(pairedGateForward(sizes), pairedGateBackward(sizes), {
    inputs: { x: randomNormal(12, 1) },
    operands: { dY: "dy" },
    gradients: { dX: "x" },
  });
});

Deno.test("gate kernels stay finite far from zero", async () => {
  const gate = [-1000, -200, -90, -20, -6, -1e-6, 0, 1e-6, 6, 20, 90, 200, 1000], length = gate.length;
  const ones = new Float32Array(length).fill(1);
  for (const activation of activations) {
    await checkKernel(gateForward({ length, activation }), { gate, up: ones });
    await checkKernel(gateBackward({ length, activation }), { gate, up: ones, dY: ones });
  }
});

Deno.test("gateForward() with gelu is within 1e-6 of the exact form everywhere", async () => {
  const gate = Float32Array.from({ length: 2001 }, (_, i) => (i - 1000) / 160);
  const { outputs, expected } = await checkKernel(gateForward({ length: 2001, activation: "gelu" }), {
    gate,
    up: new Float32Array(2001).fill(1),
  });
  outputs.y.forEach((value, i) => assertLess(Math.abs(value - expected.y[i]), 1e-6));
});

Deno.test("gateBackward() matches finite differences", () => {
  for (const activation of activations) {
    checkGradient(gateForward({ length: 9, activation }), gateBackward({ length: 9, activation }), {
      inputs: { gate: randomNormal(9, 1), up: randomNormal(9, 2) },
      operands: { dY: "dy" },
      gradients: { dGate: "gate", dUp: "up" },
    });
  }
});

Deno.test("erf() matches tabulated values", () => {
  // Abramowitz and Stegun, table 7.1.
  for (const [x, value] of [[0.1, 0.1124629160], [0.5, 0.5204998778], [1, 0.8427007929], [2, 0.9953222650]]) {
    assertAlmostEquals(erf(x), value, 1e-10);
    assertAlmostEquals(erf(-x), -value, 1e-10);
  }
  assertAlmostEquals(erf(5), 1 - 1.5374597944e-12, 1e-15);
});

Deno.test("gateForward() refuses an unknown activation", () => {
  assertThrows(() => gateForward({ length: 1, activation: "relu" as Activation }), TypeError, "silu, gelu, gelu_tanh");
});
