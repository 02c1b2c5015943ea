import { assertEquals, assertThrows } from "@std/assert";
import { checkGradient, checkKernel, randomNormal, randomUniform } from "../testing.ts";
import {
  balanceBackward,
  balanceForward,
  choose,
  none,
  type Normalization,
  softmaxBackward,
  softmaxForward,
  weighBackward,
  weighForward,
} from "./mod.ts";

const sizes = [
  { tokens: 1, experts: 1, choices: 1 },
  { tokens: 7, experts: 3, choices: 2 },
  { tokens: 300, experts: 8, choices: 3 },
  { tokens: 513, experts: 65, choices: 8 },
];
const normalizations: readonly Normalization[] = ["none", "all", "kept"];

/** Probabilities, choices and slots of which some were dropped. */
function routed({ tokens, experts, choices }: typeof sizes[number]) {
  const logits = randomNormal(tokens * experts, 1), probability = new Float32Array(logits.length);
  softmaxForward({ rows: tokens, columns: experts }).reference([logits, probability]);
  const choice = new Uint32Array(tokens * choices);
  choose({ tokens, experts, choices }).reference([logits, choice]);
  const slot = choice.map((_, i) => i % 5 === 3 || (i > 100 && i < 110) ? none : i);
  return { logits, probability, choice, slot };
}

Deno.test("softmax kernels match their references", async () => {
  for (const { tokens: rows, experts: columns } of sizes) {
    const x = randomNormal(rows * columns, 3).map((value) => 20 * value), dY = randomNormal(rows * columns, 4);
    const { expected: { y } } = await checkKernel(softmaxForward({ rows, columns }), { x });
    await checkKernel(softmaxBackward({ rows, columns }), { y, dY });
  }
});

Deno.test("choose() matches its reference, with noise on all choices, on some and on none", async () => {
  for (const size of sizes) {
    const { logits } = routed(size), uniform_ = randomUniform(logits.length, 9).map((u) => u * 0.98 + 0.01);
    await checkKernel(choose(size), { logits });
    for (const noiseFrom of [0, 1]) await checkKernel(choose({ ...size, noiseFrom }), { logits, uniform_ });
  }
});

Deno.test("choose() takes the first of equal logits, and each expert once", async () => {
  const { outputs } = await checkKernel(choose({ tokens: 2, experts: 3, choices: 3 }), { logits: [1, 1, 1, -9, 2, 2] });
  assertEquals([...outputs.choice], [0, 1, 2, 1, 2, 0]);
});

Deno.test("weigh kernels match their references where choices were dropped, all of a token's too", async () => {
  for (const size of sizes) {
    const { probability, choice, slot } = routed(size), dWeight = randomNormal(choice.length, 7);
    for (const normalize of normalizations) {
      await checkKernel(weighForward({ ...size, normalize }), { probability, choice, slot });
      await checkKernel(weighBackward({ ...size, normalize }), { probability, choice, slot, dWeight });
    }
  }
});

Deno.test("balance kernels match their references", async () => {
  for (const size of sizes) {
    const { probability, choice } = routed(size);
    for (const counted of new Set([1, size.choices])) {
      const { expected: { load } } = await checkKernel(balanceForward({ ...size, counted }), { probability, choice });
      await checkKernel(balanceBackward({ ...size, counted }), { load, weight: [0.3] });
    }
  }
});

Deno.test("gradients of the router match finite differences", () => {
  const size = { tokens: 5, experts: 4, choices: 2 }, { logits, probability, choice, slot } = routed(size);
  const rows = 5, columns = 4;
  checkGradient(softmaxForward({ rows, columns }), softmaxBackward({ rows, columns }), {
    inputs: { x: logits },
    operands: { dY: "dy" },
    gradients: { dX: "x" },
  });
  for (const normalize of normalizations) {
    checkGradient(weighForward({ ...size, normalize }), weighBackward({ ...size, normalize }), {
      inputs: { probability, choice, slot },
      operands: { dWeight: "dweight" },
      gradients: { dProbability: "probability" },
    });
  }
});

Deno.test("choose() and balanceForward() refuse more choices than there are", () => {
  assertThrows(() => choose({ tokens: 1, experts: 2, choices: 3 }), RangeError, "3 choices of 2 experts");
  assertThrows(() => balanceForward({ tokens: 1, experts: 2, choices: 1, counted: 2 }), RangeError, "2 of 1 choices");
});
