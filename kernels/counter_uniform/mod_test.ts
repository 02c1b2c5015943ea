import { assert, assertAlmostEquals, assertNotEquals } from "@std/assert";
import { checkKernel } from "../testing.ts";
import { counterUniform } from "./mod.ts";

function mean(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  return sum / values.length;
}

Deno.test("counterUniform() matches its reference and never reaches the ends", async () => {
  for (const [length, low, high] of [[1, 0, 1], [1031, 0, 1], [4096, 0.99, 1.01]]) {
    const { outputs: { y } } = await checkKernel(counterUniform({ length, stream: 3, low, high }), { counter: [7, 9] });
    for (const value of y) assert(value > 0 && value >= low && value <= high);
    if (length > 1000) assertAlmostEquals(mean(y), (low + high) / 2, (high - low) / 20);
  }
});

Deno.test("counterUniform() draws anew for another stream, step or seed", async () => {
  const draw = async (
    stream: number,
    counter: number[],
  ) => [...(await checkKernel(counterUniform({ length: 8, stream }), { counter })).outputs.y];
  const first = await draw(0, [1, 1]);
  for (const other of [await draw(1, [1, 1]), await draw(0, [2, 1]), await draw(0, [1, 2])]) {
    assertNotEquals(first, other);
  }
});
