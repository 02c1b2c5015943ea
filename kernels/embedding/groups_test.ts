import { assertEquals } from "@std/assert";
import { randomUniform } from "../testing.ts";
import { groupedTokens, groupsLength, groupTokens } from "./groups.ts";

/** Groups as lists, by the slowest way there is. */
function slowly(ids: readonly number[]) {
  const tokensOf = new Map<number, number[]>();
  ids.forEach((id, token) => tokensOf.set(id, [...tokensOf.get(id) ?? [], token]));
  return [...tokensOf].sort(([, a], [, b]) => b.length - a.length);
}

function lists(groups: Uint32Array, tokens: number) {
  return Array.from({ length: groups[2]! }, (_, group) => {
    const [begin, end] = groups.subarray(3 + 2 * tokens + group);
    return [groups[3 + tokens + group]!, [...groups.subarray(3 + begin!, 3 + end!)]] as const;
  });
}

Deno.test("groupTokens() puts the tokens of each id together, the longest groups first", () => {
  for (
    const ids of [
      [0],
      [70_000, 3, 70_000],
      Array<number>(40).fill(9),
      [...randomUniform(3000, 5)].map((u) => Math.floor(400 ** u)),
      [...Array<number>(1100).fill(2), ...Array<number>(17).fill(1), ...Array<number>(16).fill(7), 2],
    ]
  ) {
    const tokens = ids.length, groups = groupTokens(Uint32Array.from(ids)), expected = slowly(ids);
    assertEquals(groups.length, groupsLength(tokens));
    assertEquals(groupedTokens(groups.length), tokens);
    assertEquals(lists(groups, tokens), expected);
    const longer = (least: number) => expected.filter(([, { length }]) => length > least).length;
    assertEquals([...groups.subarray(0, 2)], [longer(1024), longer(16)]);
  }
});
