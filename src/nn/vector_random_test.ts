import { assert, assertEquals } from "@std/assert";
import { initialTensor, namedStream } from "./random.ts";
import { fillNormal, fillUniform, normalPair, randomModule, uniformValue } from "./vector_random.ts";

Deno.test("initialTensor() has the bits that JavaScript draws number by number", () => {
  for (const length of [1, 3, 4, 5, 32_767, 32_768, 32_770, 200_003]) {
    const next = namedStream(9, "w");
    const normal = new Float32Array(length);
    for (let i = 0; i < length; i += 2) normal.set(normalPair(0.02, next(), next()).slice(0, length - i), i);
    assertEquals(initialTensor({ kind: "normal", std: 0.02 }, { seed: 9, name: "w", length }), normal);

    const again = namedStream(9, "w"), uniform = new Float32Array(length).map(() => uniformValue(0.3, again()));
    assertEquals(initialTensor({ kind: "uniform", bound: 0.3 }, { seed: 9, name: "w", length }), uniform);
  }
});

Deno.test("what vectors are in doubt of is drawn by JavaScript", () => {
  const length = 70_000, whole = new Float32Array(length), doubted = new Float32Array(length);
  const state = Uint32Array.of(1, 2, 3, 4), same = state.slice();
  fillNormal(whole, state, 1);
  fillNormal(doubted, same, 1, 1); // as if they were as far off as they are large
  assertEquals(doubted, whole);
  assertEquals(same, state);
});

Deno.test("the ends of the random words give the numbers that JavaScript has for them", () => {
  const values = new Float32Array(4);
  // The first word of this state is 0, the second one too: the longest radius there is.
  const state = Uint32Array.of(7, 0, 7, 0), words = state.slice();
  fillNormal(values, state, 1);
  assert(values[0]! > 6.7 && values.every(Number.isFinite), `${values}`);
  fillUniform(values, words, 1);
  assertEquals(values[0], Math.fround(-1 + 2 ** -32));
});

Deno.test("the module of random numbers is valid", () => {
  assert(WebAssembly.validate(randomModule()));
});
