import { assertEquals, assertThrows } from "@std/assert";
import { checkKernel, randomUniform } from "../testing.ts";
import { none } from "../moe_router/mod.ts";
import { capacityOf, dispatch, tableOffsets } from "./mod.ts";

/** Distinct experts for every token, of uneven popularity; some tokens have none. */
function choicesOf(tokens: number, experts: number, choices: number, seed: number): Uint32Array {
  const draw = randomUniform(tokens * choices, seed);
  const choice = new Uint32Array(tokens * choices);
  for (let t = 0; t < tokens; t++) {
    const taken: number[] = [];
    for (let j = 0; j < choices; j++) {
      let e = Math.floor(draw[t * choices + j] ** 3 * experts);
      while (taken.includes(e)) e = (e + 1) % experts;
      taken.push(e);
      choice[t * choices + j] = t % 11 === 10 ? none : e;
    }
  }
  return choice;
}

const sizes = [
  { tokens: 1, experts: 1, choices: 1 },
  { tokens: 5, experts: 7, choices: 3 },
  { tokens: 525, experts: 66, choices: 2 },
];

Deno.test("dispatch() matches its reference with and without capacity, in both orders", async () => {
  for (const size of sizes) {
    const { tokens, experts, choices } = size, choice = choicesOf(tokens, experts, choices, 5);
    const priority = randomUniform(tokens * experts, 6).map((p) => Math.round(8 * p)); // many are equal
    for (const order of ["token", "choice"] as const) {
      await checkKernel(dispatch({ ...size, order }), { choice });
      for (const capacity of [3, 200]) {
        await checkKernel(dispatch({ ...size, order, capacity }), { choice });
        await checkKernel(dispatch({ ...size, order, capacity, byPriority: true }), { choice, priority });
      }
    }
  }
});

Deno.test("dispatch() keeps those of highest priority, in their order", async () => {
  const kernel = dispatch({ tokens: 4, experts: 2, choices: 1, capacity: 2, order: "token", byPriority: true });
  const { outputs } = await checkKernel(kernel, { choice: [0, 0, 1, 0], priority: [3, 0, 1, 0, 0, 0, 2, 0] });
  assertEquals([...outputs.slot], [0, none, 2, 1]);
  assertEquals([...outputs.row], [0, 3, 2, none]);
  assertEquals([...outputs.count], [3, 1]);
});

Deno.test("tableOffsets() matches its reference", async () => {
  for (const [sources, experts] of [[1, 1], [4, 3], [2, 70]]) {
    const table = Uint32Array.from({ length: sources * experts }, (_, i) => 7 * i % 5);
    await checkKernel(tableOffsets({ sources, experts }), { table });
  }
});

Deno.test("dispatch() refuses priorities without a capacity", () => {
  assertThrows(
    () => dispatch({ tokens: 1, experts: 1, choices: 1, order: "token", byPriority: true }),
    RangeError,
    "takes a capacity",
  );
});

Deno.test("capacityOf() rounds up and has a floor", () => {
  assertEquals(capacityOf({ tokens: 100, experts: 7, factor: 1.1, least: 4 }), 16);
  assertEquals(capacityOf({ tokens: 1, experts: 8, factor: 1, least: 4 }), 4);
});
