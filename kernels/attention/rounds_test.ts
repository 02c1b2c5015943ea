import { checkKernel } from "../testing.ts";
import { mostPairs, pairsOperand, roundPasses, type Rounds } from "./rounds.ts";

for (const lengths of [[5, 70, 1, 24], [900, 3, 1100, 1]]) {
  const tokens = lengths.reduce((a, b) => a + b, 0), block = 4, blocks = Math.ceil(tokens / block);
  Deno.test(`pairs of ${blocks} blocks are numbered, and blocks ordered by them`, async () => {
    const start: number[] = [], end: number[] = [];
    for (const length of lengths) {
      const first = start.length;
      for (let i = 0; i < length; i++) start.push(first), end.push(first + length);
    }
    const rounds: Rounds = { block, blocks, pairs: mostPairs(tokens, Math.max(...lengths), block), heads: 1, count: 1 };
    const operands = [
      { name: "start", type: "u32", length: tokens, access: "read" },
      { name: "end", type: "u32", length: tokens, access: "read" },
      { ...pairsOperand(rounds), access: "write" },
    ] as const;
    await checkKernel({
      name: "pairs",
      operands,
      cost: { flops: 0, bytes: 0 },
      reference([start, end, pairs]) {
        const firstKeys = Array.from({ length: blocks }, (_, i) => Math.floor(start[i * block]! / block));
        const lastQueries = Array.from(
          { length: blocks },
          (_, i) => Math.ceil(end[Math.min((i + 1) * block, tokens) - 1]! / block),
        );
        const listed = firstKeys.flatMap((first, i) =>
          Array.from({ length: i - first + 1 }, (_, j) => i * 65536 + first + j)
        );
        let number = 0;
        const base = firstKeys.map((first, i) => (number += i - first + 1) - (i + 1));
        const order = (count: (i: number) => number) =>
          base.map((_, i) => i).sort((a, b) => count(b) - count(a) || a - b);
        pairs!.fill(0xffff_ffff);
        pairs!.set([
          0,
          ...base,
          ...firstKeys,
          ...lastQueries,
          ...order((i) => i - firstKeys[i]!),
          ...order((i) => lastQueries[i]! - i),
          ...listed,
        ]);
      },
      passes: (traits) => roundPasses(rounds, operands, traits, []),
    }, { start, end });
  });
}
