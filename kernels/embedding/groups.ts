/**
 * Tokens by id, made on the host, which has the ids first: the gradient of a table then reads each row of dY once and
 * each row that was looked up once, wherever its tokens are, and the device sorts nothing.
 *
 * A group is the tokens of one id, in their order. Groups stand by length, the longest first and those of one length as
 * their ids first occur, so neighbours have alike much to do. As `u32`:
 *
 * | words | what |
 * |---|---|
 * | 3 | how many groups are huge, how many are long (those among them), how many there are |
 * | tokens | the tokens, group by group |
 * | tokens | the id of each group |
 * | tokens + 1 | where each group begins among the tokens; behind the last one, where it ends |
 */

/** Groups of more tokens are long: a workgroup sums them, fewer are summed by one invocation a column. */
export const longGroup = 16;
/** Groups of more tokens are huge: more workgroups share their columns. */
export const hugeGroup = 1024;

/** Words of the groups of so many tokens. */
export const groupsLength = (tokens: number): number => 3 * tokens + 4;
/** Tokens whose groups are so many words. */
export const groupedTokens = (length: number): number => (length - 4) / 3;

/**
 * Takes time for each token and memory for the largest id.
 *
 * @example
 * ```ts
 * import { groupsLength, groupTokens } from "./groups.ts";
 * const [huge, long, count, ...rest] = groupTokens(new Uint32Array([5, 9, 5]));
 * console.assert(huge === 0 && long === 0 && count === 2 && rest.length === groupsLength(3) - 3);
 * console.assert(rest.join() === "0,2,1,5,9,0,0,2,3,0"); // tokens 0 and 2 of id 5, then token 1 of id 9
 * ```
 */
export function groupTokens(ids: Uint32Array): Uint32Array<ArrayBuffer> {
  const tokens = ids.length, made = new Uint32Array(groupsLength(tokens));
  const order = made.subarray(3), idOf = made.subarray(3 + tokens), beginOf = made.subarray(3 + 2 * tokens);
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
  for (let length = tokens, before = 0; length > 0; length--) {
    const same = places[length]!;
    places[length] = before;
    before += same;
  }
  for (let group = 0; group < groups; group++) idOf[places[counts[found[group]!]!]!++] = found[group]!;
  const next = counts; // where the next token of an id goes
  let begin = 0;
  for (let group = 0; group < groups; group++) {
    const id = idOf[group]!, length = counts[id]!;
    if (length > hugeGroup) made[0]!++;
    if (length > longGroup) made[1]!++;
    beginOf[group] = begin;
    next[id] = begin;
    begin += length;
  }
  made[2] = groups;
  beginOf[groups] = begin;
  for (let token = 0; token < tokens; token++) order[next[ids[token]!]!++] = token;
  return made;
}
