import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { checkKernel, floatTypes, halfTypes, randomNormal, randomUniform } from "../testing.ts";
import { decode, encode } from "../host.ts";
import { adamw, adamwScalars } from "./mod.ts";

const settings = { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weightDecay: 0.01, step: 3, gradientScale: 0.37 };

for (const length of [1, 5, 8, 256, 1027, 4100]) {
  Deno.test(`adamw() matches its reference at length ${length}`, async () => {
    await checkKernel(adamw({ length }), {
      parameters: randomNormal(length, 1),
      gradients: randomNormal(length, 2),
      firstMoment: randomNormal(length, 3),
      secondMoment: randomUniform(length, 4),
      scalars: adamwScalars(settings),
    }, { tolerance: 2e-6 });
  });
}

for (const modelType of halfTypes) {
  Deno.test(`adamw() leaves a copy in ${modelType} of the parameters it wrote, whatever the gradients' type`, async () => {
    for (const length of [1, 8, 1027]) {
      for (const gradientType of floatTypes) {
        const { outputs } = await checkKernel(adamw({ length, gradientType, modelType }), {
          parameters: randomNormal(length, 1),
          gradients: randomNormal(length, 2),
          firstMoment: randomNormal(length, 3),
          secondMoment: randomUniform(length, 4),
          scalars: adamwScalars(settings),
        }, { tolerance: 2e-6 });
        assertEquals(outputs.model, decode(modelType, encode(modelType, outputs.parameters)));
      }
    }
  });
}

Deno.test("adamw() moves each parameter by lr against the gradient's sign at the first step", () => {
  const gradients = new Float32Array([3, -0.002, 1e-3, -40]);
  const parameters = new Float32Array(4);
  const scalars = adamwScalars({ ...settings, beta2: 0.999, weightDecay: 0, step: 1 });
  adamw({ length: 4 }).reference([parameters, gradients, new Float32Array(4), new Float32Array(4), scalars]);
  parameters.forEach((value, i) => assertAlmostEquals(value, -1e-3 * Math.sign(gradients[i]), 1e-7));
});

Deno.test("adamw() minimises a quadratic", () => {
  const x = new Float64Array([5, -3]), m = new Float64Array(2), v = new Float64Array(2);
  const kernel = adamw({ length: 2 });
  for (let step = 1; step <= 2000; step++) {
    const lr = 0.1 * (1 - step / 2000);
    const scalars = adamwScalars({ ...settings, lr, weightDecay: 0, gradientScale: 1, step });
    kernel.reference([x, Float64Array.of(2 * (x[0] - 1), 20 * (x[1] - 2)), m, v, scalars]);
  }
  assertAlmostEquals(x[0], 1, 1e-3);
  assertAlmostEquals(x[1], 2, 1e-3);
});

Deno.test("adamw() with a zero gradient only decays", async () => {
  const zeros = new Float32Array(4);
  const { outputs } = await checkKernel(adamw({ length: 4 }), {
    parameters: [1, -2, 3, 0],
    gradients: zeros,
    firstMoment: zeros,
    secondMoment: zeros,
    scalars: adamwScalars({ ...settings, lr: 0.5, weightDecay: 0.1 }),
  });
  [0.95, -1.9, 2.85, 0].forEach((value, i) => assertAlmostEquals(outputs.parameters[i], value, 1e-6));
});

Deno.test("adamwScalars() refuses a step before the first", () => {
  assertThrows(() => adamwScalars({ ...settings, step: 0 }), RangeError, "from 1, got 0");
});
