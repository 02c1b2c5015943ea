import { assertEquals } from "@std/assert";
import { attentionForward } from "./attention/mod.ts";
import { type Choices, ChoiceTable, choose, sizeClass } from "./choices.ts";
import type { DeviceTraits, Kernel } from "./kernel.ts";
import { matmul } from "./matmul/mod.ts";
import { rmsNormBackward } from "./norm/mod.ts";
import { checkKernel, randomNormal, testDevice } from "./testing.ts";

Deno.test("choose() takes the first candidate, or a chosen one that there is", () => {
  const choices = new ChoiceTable();
  choices.take({ known: "b", other: "gone", same: "a" });
  const ask = (question: string) => choose({ choices }, question, ["a", "b"]);
  assertEquals([ask("known"), ask("other"), ask("same"), ask("never heard of")], ["b", "a", "a", "a"]);
  assertEquals(choose({}, "known", ["a", "b"]), "a");
  assertEquals([...choices.asked], ["known", "other", "same", "never heard of"]);
  assertEquals([...choices.used], [["known", "b"]]);
});

Deno.test("sizeClass() rounds to powers of two", () => {
  assertEquals([1, 3, 90, 91, 1024, 50_304].map(sizeClass), [1, 4, 64, 128, 1024, 65_536]);
});

const inputsOf = ({ operands }: Kernel) =>
  Object.fromEntries(
    operands.filter(({ access }) => access === "read" || access === "update").map(({ name, type, length }, i) => [
      name,
      type !== "u32"
        ? randomNormal(length, i + 1)
        : name === "end"
        ? new Uint32Array(length).fill(length)
        : new Uint32Array(length),
    ]),
  );

/** Texts of tiles take long to compile on software rendering: a few of each kind; the suites of the kernels have more. */
const kernels = {
  "this device": () => [
    attentionForward({ tokens: 19, heads: 2, kvHeads: 1, headDim: 8 }),
    rmsNormBackward({ rows: 5, columns: 520, type: "bf16" }),
  ],
  "a GPU": () => [
    matmul({ m: 34, n: 35, k: 530, transposeA: true, types: { a: "bf16", b: "bf16" } }),
    rmsNormBackward({ rows: 5, columns: 520 }),
  ],
} as const;

for (const [what, make] of Object.entries(kernels)) {
  Deno.test(`forms that kernels offer match the reference at odd sizes, ${what}`, async () => {
    const { traits } = await testDevice(), pretend: Partial<DeviceTraits> = what === "a GPU" ? { software: false } : {};
    for (const kernel of make()) {
      const asked = new Map<string, readonly string[]>();
      kernel.passes({
        ...traits,
        ...pretend,
        choices: { of: (question, candidates) => void asked.set(question, candidates) },
      });
      assertEquals(asked.size, 1, kernel.name);
      for (const [question, candidates] of asked) {
        assertEquals(new Set(candidates).size, candidates.length);
        for (const name of candidates.slice(1, 4)) {
          const choices: Choices = { of: (other) => other === question ? name : undefined };
          await checkKernel(kernel, inputsOf(kernel), { tolerance: 2e-5, traits: { ...pretend, choices } });
        }
      }
    }
  });
}
