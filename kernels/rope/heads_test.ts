import { checkGradient, checkKernel, floatTypes, randomNormal } from "../testing.ts";
import { joinHeads, splitHeads } from "./heads.ts";
import { rotaryTables } from "./mod.ts";

for (const type of floatTypes) {
  Deno.test(`splitHeads() and joinHeads() match their references in ${type}`, async () => {
    // By vectors of four and of two pairs, and pair by pair.
    for (const [headDim, interleaved] of [[8, false], [6, false], [4, true], [6, true]] as const) {
      const tokens = 13, heads = 4, kvHeads = 2, positionsLength = 9;
      const sizes = { tokens, heads, kvHeads, headDim, positionsLength, interleaved, type };
      const positions = Array.from({ length: tokens }, (_, i) => (i * 5) % 11); // past the tables too
      const tables = { positions, ...rotaryTables({ headDim, base: 10_000, length: positionsLength }) };
      const part = (count: number, seed: number) => randomNormal(tokens * count * headDim, seed);
      await checkKernel(splitHeads(sizes), { qkv: part(heads + 2 * kvHeads, 1), ...tables });
      const parts = { query: part(heads, 1), key: part(kvHeads, 2), value: part(kvHeads, 3) };
      await checkKernel(joinHeads(sizes), { ...parts, ...tables });
    }
  });
}

Deno.test("joinHeads() is the gradient of splitHeads(), by finite differences", () => {
  for (const interleaved of [false, true]) {
    const sizes = { tokens: 3, heads: 2, kvHeads: 1, headDim: 6, positionsLength: 4, interleaved };
    checkGradient(splitHeads(sizes), joinHeads(sizes), {
      inputs: {
        qkv: randomNormal(72, 1),
        positions: [3, 0, 2],
        ...rotaryTables({ headDim: 6, base: 50, length: 4 }),
      },
      operands: { query: "dquery", key: "dkey", value: "dvalue" },
      gradients: { qkv: "qkv" },
    });
  }
});
