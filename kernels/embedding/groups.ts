/**
 * Tokens by id, made on the host, which has the ids first: the gradient of a table then reads each row of dY once and
 * each row that was looked up once, wherever its tokens are, and the device sorts nothing.
 *
 * A group is the tokens of one id, in their order. Short groups come before long ones, and in both the longest first and
 * those of one length as their ids first occur, so neighbours have alike much to do. As `u32`:
 *
 * | words | what |
 * |---|---|
 * | 4 | how many groups have more tokens than each of `longGroups(tokens)` |
 * | 1 | how many groups there are |
 * | tokens | the tokens, group by group |
 * | tokens | the id of each group |
 * | tokens + 1 | where each group begins among the tokens; behind the last one, where it ends |
 */

/**
 * Groups of more tokens than the last of these are summed by workgroups, fewer by one invocation a column; of more than
 * those before it by more workgroups, with fewer columns each. Among few tokens a sum of 24 by one invocation would be what
 * all others wait for.
 */
export const longGroups = (tokens: number): readonly [number, number, number, number] =>
  tokens < 2 ** 14 ? [8192, 1024, 64, 16] : [8192, 1024, 128, 24];
/** How many kinds of long groups there are. */
export const longKinds = 4;
/** Words before the tokens. */
export const headWords = longKinds + 1;

/** Words of the groups of so many tokens. */
export const groupsLength = (tokens: number): number => headWords + 3 * tokens + 1;
/** Tokens whose groups are so many words. */
export const groupedTokens = (length: number): number => (length - headWords - 1) / 3;

/**
 * Takes time for each token and memory for the largest id.
 *
 * @example
 * ```ts
 * import { groupsLength, groupTokens } from "./groups.ts";
 * const [huge, longest, longer, long, count, ...rest] = groupTokens(new Uint32Array([5, 9, 5]));
 * console.assert(huge + longest + longer + long === 0 && count === 2 && rest.length === groupsLength(3) - 5);
 * console.assert(rest.join() === "0,2,1,5,9,0,0,2,3,0"); // tokens 0 and 2 of id 5, then token 1 of id 9
 * ```
 */
export function groupTokens(ids: Uint32Array): Uint32Array<ArrayBuffer> {
  const tokens = ids.length, longer = longGroups(tokens), made = new Uint32Array(groupsLength(tokens));
  const order = made.subarray(headWords), idOf = order.subarray(tokens), beginOf = idOf.subarray(tokens);
  let rows = 0;
  for (let token = 0; token < tokens; token++) rows = Math.max(rows, ids[token]! + 1);
  const counts = new Uint32Array(rows), found = new Uint32Array(tokens);
  let groups = 0;
  for (let token = 0; token < tokens; token++) {
    const id = ids[token]!;
    if (counts[id]!++ === 0) found[groups++] = id;
  }
  const places = new Uint32Array(tokens + 1); // by length: first how many groups, then where the next one goes
  for (let group = 0; group < groups; group++) places[counts[found[group]!]!]!++;
  const shortest = longer.at(-1)! + 1;
  let before = 0;
  const place = (longest: number, least: number) => {
    for (let length = longest; length >= least; length--) {
      const same = places[length]!;
      places[length] = before;
      before += same;
    }
  };
  place(Math.min(tokens, shortest - 1), 1);
  place(tokens, shortest);
  for (let group = 0; group < groups; group++) idOf[places[counts[found[group]!]!]!++] = found[group]!;
  const next = counts; // where the next token of an id goes
  let begin = 0;
  for (let group = 0; group < groups; group++) {
    const id = idOf[group]!, length = counts[id]!;
    longer.forEach((least, kind) => made[kind]! += Number(length > least));
    beginOf[group] = begin;
    next[id] = begin;
    begin += length;
  }
  made[longKinds] = groups;
  beginOf[groups] = begin;
  for (let token = 0; token < tokens; token++) order[next[ids[token]!]!++] = token;
  return made;
}
