import { assertEquals } from "@std/assert";
import { type FloatType, rounded } from "../host.ts";
import type { Kernel } from "../kernel.ts";
import { checkKernel, randomNormal, randomUniform } from "../testing.ts";
import { type GradientForm, gradientForm, gradientPasses } from "./gradient.ts";
import { embeddingGradient, groupTokens } from "./mod.ts";

interface Sizes {
  readonly type?: FloatType;
  readonly tokens: number;
  readonly vocabulary: number;
  readonly columns: number;
  readonly firstRow?: number;
}

function kernelOf(given: Sizes, change: Partial<GradientForm>): Kernel {
  const sizes = { firstRow: 0, type: "f32" as const, ...given };
  const passes: Kernel["passes"] = (traits) =>
    gradientPasses(traits, sizes, { ...gradientForm(traits, sizes), ...change });
  return { ...embeddingGradient(sizes), passes };
}

/** dTable as the ids themselves tell, in double. */
function sumOf(ids: readonly number[], { dY, dTable }: Record<"dY" | "dTable", Float32Array>, sizes: Sizes) {
  const { vocabulary, columns, firstRow = 0 } = sizes, sums = Float64Array.from(dTable);
  ids.forEach((id, token) => {
    if (id < firstRow || id >= firstRow + vocabulary) return;
    for (let c = 0; c < columns; c++) sums[(id - firstRow) * columns + c]! += dY[token * columns + c]!;
  });
  return sums;
}

/** Words as texts have them: the n-th as often as 1/n. */
const words = (tokens: number, vocabulary: number) =>
  [...randomUniform(tokens, 5)].map((u) => Math.min(vocabulary - 1, Math.floor(vocabulary ** u) - 1));

const lengths = [1, 2, 3, 4, 5, 6, 9, 15, 16, 17, 33, 300, 1024, 1025];
/** Ids of so many tokens each. */
const runs = lengths.flatMap((length, id) => Array<number>(length).fill(id));

async function check(
  ids: readonly number[],
  columns: number,
  type: FloatType,
  changes: readonly Partial<GradientForm>[],
) {
  const sizes = { tokens: ids.length, vocabulary: Math.max(...ids) + 1, columns, type }, { tokens, vocabulary } = sizes;
  const dY = Float32Array.from(rounded(type, randomNormal(tokens * columns, 4)));
  const inputs = { groups: groupTokens(Uint32Array.from(ids)), dY, dTable: randomNormal(vocabulary * columns, 2) };
  const bits: unknown[] = [];
  for (const change of changes) {
    const { outputs, expected } = await checkKernel(kernelOf(sizes, change), inputs, { traits: { software: false } });
    sumOf(ids, inputs, sizes).forEach((value, i) => assertEquals(expected.dTable![i], Math.fround(value)));
    bits.push(outputs.dTable);
  }
  bits.forEach((each) => assertEquals(each, bits[0])); // whoever adds them, the sums are the same
  return { sizes, inputs };
}

Deno.test("the gradient of an embedding is the sum over its tokens, however many an id has and whoever adds them", async () => {
  for (
    const [ids, columns] of [[runs, 12], [words(300, 40), 5], [words(700, 5000), 36], [words(2 ** 14, 900), 4]] as const
  ) {
    const changes = [{}, ...(ids === runs ? [{ each: 3, ahead: 1, longs: 5, shorts: 1 }] : [])];
    const { sizes, inputs } = await check(ids, columns, "f32", changes);
    await checkKernel(kernelOf(sizes, {}), inputs, { traits: { software: true } });
  }
});

Deno.test("the gradient of an embedding is the same by eight numbers of a half type at once", async () => {
  const eights = { eights: true, each: 1, wide: 2, longs: 7, shorts: 3 };
  await check(runs, 48, "bf16", [eights]);
  await check(words(500, 40), 40, "f16", [{ ...eights, each: 2, ahead: 2 }]); // an odd number of eights
});
