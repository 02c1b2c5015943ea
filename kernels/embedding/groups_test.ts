import { assertEquals } from "@std/assert";
import { randomUniform } from "../testing.ts";
import { groupedTokens, groupsLength, groupTokens, headWords } from "./groups.ts";

/** Groups as lists, by the slowest way there is. */
function slowly(ids: readonly number[]) {
  const tokensOf = new Map<number, number[]>();
  ids.forEach((id, token) => tokensOf.set(id, [...tokensOf.get(id) ?? [], token]));
  const sorted = [...tokensOf].sort(([, a], [, b]) => b.length - a.length);
  const longest = ids.length < 2 ** 14 ? 16 : 24; // of the short ones
  return [
    ...sorted.filter(([, { length }]) => length <= longest),
    ...sorted.filter(([, { length }]) => length > longest),
  ];
}

function lists(groups: Uint32Array, tokens: number) {
  const order = groups.subarray(headWords), idOf = order.subarray(tokens), beginOf = idOf.subarray(tokens);
  return Array.from({ length: groups[headWords - 1]! }, (_, group) => {
    const [begin, end] = beginOf.subarray(group);
    return [idOf[group]!, [...order.subarray(begin, end)]] as const;
  });
}

Deno.test("groupTokens() puts the tokens of each id together, long groups behind short ones, the longest first", () => {
  for (
    const ids of [
      [0],
      [70_000, 3, 70_000],
      Array<number>(40).fill(9),
      [...randomUniform(3000, 5)].map((u) => Math.floor(400 ** u)),
      [...randomUniform(2 ** 14, 5)].map((u) => Math.floor(1000 ** u)),
      [...Array<number>(1100).fill(2), ...Array<number>(17).fill(1), ...Array<number>(16).fill(7), 2],
    ]
  ) {
    const tokens = ids.length, groups = groupTokens(Uint32Array.from(ids)), expected = slowly(ids);
    assertEquals(groups.length, groupsLength(tokens));
    assertEquals(groupedTokens(groups.length), tokens);
    assertEquals(lists(groups, tokens), expected);
    const longer = (least: number) => expected.filter(([, { length }]) => length > least).length;
    assertEquals(
      [...groups.subarray(0, 4)],
      (tokens < 2 ** 14 ? [8192, 1024, 64, 16] : [8192, 1024, 128, 24]).map(longer),
    );
  }
});
