import { assertEquals } from "@std/assert";
import { checkGradient, checkKernel, floatTypes, randomNormal, randomUniform } from "../testing.ts";
import { embeddingForward, embeddingGradient, groupTokens } from "./mod.ts";

const grouped = (ids: ArrayLike<number>) => groupTokens(Uint32Array.from(ids));
const draw = (tokens: number, vocabulary: number) => randomUniform(tokens, 9).map((u) => Math.floor(u * vocabulary));

for (const type of floatTypes) {
  Deno.test(`embedding kernels match their references in ${type}`, async () => {
    for (const [tokens, vocabulary, columns] of [[1, 1, 1], [5, 3, 7], [300, 11, 12], [77, 1000, 5], [9, 4, 1030]]) {
      const sizes = { tokens, vocabulary, columns, type };
      const ids = draw(tokens, vocabulary);
      const table = randomNormal(vocabulary * columns, 1), dY = randomNormal(tokens * columns, 2);
      await checkKernel(embeddingForward(sizes), { ids, table }, { tolerance: 0 });
      await checkKernel(embeddingForward({ ...sizes, tableType: "f32" }), { ids, table }, { tolerance: 0 });
      for (const software of [true, false]) {
        await checkKernel(embeddingGradient(sizes), { groups: grouped(ids), dY, dTable: table }, {
          traits: { software },
        });
      }
    }
  });
}

Deno.test("embedding kernels pass over ids that are not in the table", async () => {
  const tokens = 6, vocabulary = 3, columns = 4;
  const ids = [3, 2, 4_294_967_295, 3, 0, 2_147_483_648];
  const table = randomNormal(vocabulary * columns, 1);
  const { outputs } = await checkKernel(embeddingForward({ tokens, vocabulary, columns }), { ids, table });
  assertEquals([...outputs.y.slice(0, columns)], [0, 0, 0, 0]);
  const dY = randomNormal(tokens * columns, 2);
  const groups = grouped([3, 2, 70_000, 3, 0, 4]);
  const gradient = await checkKernel(embeddingGradient({ tokens, vocabulary, columns }), { groups, dY, dTable: table });
  assertEquals(gradient.outputs.dTable.slice(columns, 2 * columns), table.slice(columns, 2 * columns));
});

Deno.test("embedding kernels of divided rows add up to those of the whole table", async () => {
  const tokens = 9, columns = 4, vocabulary = 10, own = 5, ids = draw(tokens, vocabulary);
  const table = randomNormal(vocabulary * columns, 1), dY = randomNormal(tokens * columns, 2);
  const whole = await checkKernel(embeddingForward({ tokens, vocabulary, columns }), { ids, table });
  const zeros = new Float32Array(vocabulary * columns), groups = grouped(ids);
  const gradient = await checkKernel(embeddingGradient({ tokens, vocabulary, columns }), { groups, dY, dTable: zeros });
  const sum = new Float32Array(tokens * columns), rows: number[] = [];
  for (const firstRow of [0, own]) {
    const sizes = { tokens, vocabulary: own, columns, firstRow },
      cut = (all: Float32Array) => all.slice(firstRow * columns, (firstRow + own) * columns);
    const { outputs } = await checkKernel(embeddingForward(sizes), { ids, table: cut(table) });
    sum.forEach((_, i) => sum[i] += outputs.y[i]);
    rows.push(...(await checkKernel(embeddingGradient(sizes), { groups, dY, dTable: cut(zeros) })).outputs.dTable);
  }
  assertEquals(sum, whole.outputs.y);
  assertEquals(rows, [...gradient.outputs.dTable]);
});

Deno.test("embeddingGradient() repeats bit for bit", async () => {
  const sizes = { tokens: 200, vocabulary: 3, columns: 8 };
  const inputs = { groups: grouped(draw(200, 3)), dY: randomNormal(1600, 1), dTable: randomNormal(24, 2) };
  for (const software of [true, false]) {
    const run = () => checkKernel(embeddingGradient(sizes), inputs, { traits: { software } });
    assertEquals((await run()).outputs.dTable, (await run()).outputs.dTable);
  }
});

Deno.test("embeddingGradient() matches finite differences", () => {
  const sizes = { tokens: 7, vocabulary: 4, columns: 3 };
  const ids = [1, 3, 1, 1, 9, 0, 3];
  checkGradient(embeddingForward(sizes), embeddingGradient(sizes), {
    inputs: { ids, groups: grouped(ids), table: randomNormal(12, 1) },
    operands: { dY: "dy" },
    gradients: { dTable: "table" },
  });
});
