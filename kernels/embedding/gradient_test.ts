import { assertEquals } from "@std/assert";
import type { Kernel } from "../kernel.ts";
import { checkKernel, randomNormal, randomUniform } from "../testing.ts";
import { type GradientForm, gradientForm, gradientOperands, gradientPasses } from "./gradient.ts";
import { embeddingGradient } from "./mod.ts";

interface Sizes {
  readonly tokens: number;
  readonly vocabulary: number;
  readonly columns: number;
  readonly firstRow?: number;
}

function kernelOf(given: Sizes, change: Partial<GradientForm>): Kernel {
  const sizes = { firstRow: 0, type: "f32" as const, ...given }, form = { ...gradientForm(sizes), ...change };
  return {
    ...embeddingGradient(sizes),
    operands: gradientOperands(sizes, form),
    passes: (traits) => gradientPasses(traits, sizes, form),
  };
}

/** Words as texts have them: the n-th as often as 1/n. */
const words = (tokens: number, vocabulary: number) =>
  randomUniform(tokens, 5).map((u) => Math.min(vocabulary - 1, Math.floor(vocabulary ** u) - 1));

const byDigits = { pairwise: 0 };

Deno.test("the gradient of an embedding is the same whichever way its tokens are sorted", async () => {
  for (
    const [tokens, vocabulary, firstRow] of [
      [1, 1, 0],
      [255, 7, 3], // one digit, one group
      [1025, 50_304, 0], // two digits, the last group has a token
      [16_640, 92_544, 100], // of nine bits; groups of two blocks
      [600, 300_000, 0], // three digits
    ] as const
  ) {
    const sizes = { tokens, vocabulary, columns: 1, firstRow };
    const ids = words(tokens, vocabulary).map((id, i) => i % 97 === 3 ? 4_294_967_295 : id + firstRow);
    const inputs = { ids, dY: randomNormal(tokens, 1), dTable: new Float32Array(vocabulary) };
    const { outputs: { dTable } } = await checkKernel(kernelOf(sizes, byDigits), inputs);
    if (tokens > 1025) continue; // all pairs of so many take long in software
    for (const software of [true, false]) {
      const pairwise = await checkKernel(kernelOf(sizes, { pairwise: tokens }), inputs, { traits: { software } });
      assertEquals(pairwise.outputs.dTable, dTable);
    }
  }
});

Deno.test("the gradient of an embedding is right wherever many tokens of an id are cut", async () => {
  const chunk = 8, tokens = 150, vocabulary = 40, columns = 4;
  const runs = (lengths: readonly number[]) =>
    Array.from(lengths, (length, id) => Array<number>(length).fill(id)).flat().slice(0, tokens);
  const patterns = [
    Array<number>(tokens).fill(3),
    Array.from({ length: tokens }, (_, i) => i % 2),
    words(tokens, vocabulary),
    ...[1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 16, 17, 33].flatMap((length) => [
      runs([length, ...Array(200).fill(length)]).map((id) => id % vocabulary),
      runs([5, length, 3, length, 150]),
      runs([75, 1, length, 1, length, 1, length, 150]),
    ]),
  ];
  for (const software of [true, false]) {
    const kernel = kernelOf({ tokens, vocabulary, columns }, { chunk });
    for (const ids of patterns) {
      const inputs = { ids, dY: randomNormal(tokens * columns, 4), dTable: randomNormal(vocabulary * columns, 2) };
      await checkKernel(kernel, inputs, { traits: { software } });
    }
  }
});

Deno.test("a single id that fills thousands of tokens has the sum of all", async () => {
  const sizes = { tokens: 9000, vocabulary: 5, columns: 1 };
  const inputs = { ids: new Uint32Array(9000).fill(2), dY: randomNormal(9000, 1), dTable: new Float32Array(5) };
  await checkKernel(kernelOf(sizes, { ...byDigits, chunk: 16 }), inputs);
});
