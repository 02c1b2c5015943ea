/**
 * Work by pairs of blocks through bounded scratch: a pair is a block of queries and a block of keys that it sees. One pass
 * makes the weights of every pair of some heads and their gradients, others multiply them with what they weigh. Scratch
 * holds the pairs of a round's heads; all heads take several rounds, of one text each pass: which round it is, is data.
 *
 * Which pairs there are is data too, as segments are: a pass numbers the visible ones (`pairsPass`). How many a round has
 * room for follows from the longest segment that is to be expected. Where there are more, passes by pairs do nothing, and
 * others that need no scratch do all (`unlessByPairs`).
 */
import { type DeviceTraits, elementBytes, type ElementType, type Operand, type Pass } from "../kernel.ts";
import { storage } from "../storage.ts";
import type { AttentionShape } from "./shape.ts";

export interface Rounds {
  /** Tokens of a block. */
  readonly block: number;
  /** Blocks of the stream. */
  readonly blocks: number;
  /** Visible pairs of a head for which there is room. */
  readonly pairs: number;
  /** Heads of a round, whole groups; the last round may have fewer. */
  readonly heads: number;
  readonly count: number;
}

/** Bytes that a round may hold. */
const mostBytes = 320 << 20;

/**
 * The rounds of a shape.
 *
 * @param type of the weights in scratch
 * @param parts what is kept of a pair: its weights and the gradients of its scores, or one of them
 * @returns undefined where the pairs of a single group of heads would not fit
 */
export function roundsOf(
  shape: AttentionShape,
  type: ElementType,
  { block = 128, parts = 2, bytes = mostBytes }: { block?: number; parts?: 1 | 2; bytes?: number } = {},
): Rounds | undefined {
  const { tokens, heads, kvHeads, longest = tokens } = shape;
  const pairs = mostPairs(tokens, longest, block), group = heads / kvHeads;
  const groups = Math.floor(bytes / (parts * pairs * block * block * elementBytes[type] * group));
  if (groups === 0) return undefined;
  const count = Math.ceil(kvHeads / groups);
  return { block, blocks: Math.ceil(tokens / block), pairs, heads: Math.ceil(kvHeads / count) * group, count };
}

/**
 * Blocks whose first token is of one segment see that segment's blocks up to themselves, and one more where it begins
 * within a block; the stream's first segment does not.
 *
 * @example
 * ```ts
 * import { mostPairs } from "./rounds.ts";
 * console.assert(mostPairs(512, 512, 128) === 1 + 2 + 3 + 4);
 * console.assert(mostPairs(512, 128, 128) === 4 * 2);
 * ```
 */
export function mostPairs(tokens: number, longest: number, block: number): number {
  const blocks = Math.ceil(tokens / block), most = Math.ceil(longest / block);
  const ofSegment = (count: number) => count * (count + 3) / 2;
  const ofSegments = Math.floor(blocks / most) * ofSegment(most) + ofSegment(blocks % most);
  return Math.min(ofSegments, blocks * (blocks + 1) / 2);
}

/**
 * Places of what `pairs` holds: the round; for each block its base, first key block and one past its last query block; the
 * blocks in the order of how many key blocks they see, and how many query blocks see them, most first; the list.
 */
const placesOf = ({ blocks, pairs }: Rounds) => ({
  base: 1,
  firstKeys: 1 + blocks,
  lastQueries: 1 + 2 * blocks,
  queryOrder: 1 + 3 * blocks,
  keyOrder: 1 + 4 * blocks,
  list: 1 + 5 * blocks,
  length: 1 + 5 * blocks + pairs,
});

export const pairsOperand = (rounds: Rounds): Operand => ({
  name: "pairs",
  type: "u32",
  length: placesOf(rounds).length,
  access: "scratch",
});

/** Pairs of a round's heads. */
export const slotsOf = ({ heads, pairs }: Rounds): number => heads * pairs;

/** Weights of a round's pairs, then the gradients of their scores: for each head and pair a line of keys for each query. */
export const scratchOperand = (rounds: Rounds, type: ElementType, parts: 1 | 2 = 2): Operand => ({
  name: "scratch",
  type,
  length: parts * slotsOf(rounds) * rounds.block ** 2,
  access: "scratch",
});

/**
 * WGSL functions that read `pairs`. Whatever it holds, what they answer is within bounds:
 *
 * - `firstHead()`: the round's first head; past all heads where none is left.
 * - `pairAt(n)`: query and key block of pair n; past all blocks where there is none.
 * - `baseOf(i)`: pair (i, j) has the number `baseOf(i) + j`.
 * - `firstKeys(i)`: first key block that query block i sees; `lastQueries(j)`: one past the last query block that sees key block j.
 * - `queriesAt(n)`, `keysAt(n)`: the query or key block with the nth most pairs.
 * - `slotOf(head, n)`: place of pair n among those of the round's heads.
 */
export const pairsText = (rounds: Rounds): string => {
  const { blocks, pairs, heads, count } = rounds, places = placesOf(rounds);
  const ofBlock = (place: number) => `pairs[${place}u + min(block, ${blocks - 1}u)]`;
  return `
fn firstHead() -> u32 { return min(pairs[0], ${count}u) * ${heads}u; }
fn baseOf(block: u32) -> u32 { return ${ofBlock(places.base)}; }
fn firstKeys(block: u32) -> u32 { return ${ofBlock(places.firstKeys)}; }
fn lastQueries(block: u32) -> u32 { return min(${ofBlock(places.lastQueries)}, ${blocks}u); }
fn queriesAt(block: u32) -> u32 { return min(${ofBlock(places.queryOrder)}, ${blocks - 1}u); }
fn keysAt(block: u32) -> u32 { return min(${ofBlock(places.keyOrder)}, ${blocks - 1}u); }
fn pairAt(number: u32) -> vec2u {
  let pair = pairs[${places.list}u + min(number, ${pairs - 1}u)];
  return vec2u(pair >> 16u, pair & 0xffffu);
}
fn slotOf(head: u32, number: u32) -> u32 { return head * ${pairs}u + min(number, ${pairs - 1}u); }`;
};

/** A round's number that says that there are more pairs than it has room for. */
const tooMany = 0xffff_ffff;

/** Ends an invocation of a pass that is there for data which passes by pairs cannot do. */
export const unlessByPairs = `if (pairs[0] != ${tooMany}u) { return; }`;

/** start, end → pairs: the first round, and the visible pairs, numbered query block by query block. */
function pairsPass(rounds: Rounds, operands: readonly Operand[], traits: DeviceTraits): Pass {
  const { block, blocks, pairs } = rounds, tokens = operands.find(({ name }) => name === "start")!.length;
  const places = ["start", "end", "pairs"].map((name) => operands.findIndex((operand) => operand.name === name));
  const { directives, bindings, bound } = storage(traits, places.map((place) => operands[place])),
    at = placesOf(rounds);
  const threads = 256, own = Math.ceil(blocks / threads), active = Math.ceil(blocks / own);
  const code = `${directives}${bindings}
var<workgroup> counts: array<u32, ${threads}>;
var<workgroup> spans: array<vec2u, ${threads}>; // blocks of keys and of queries beside a block's own, of some blocks
fn firstKeysOf(block: u32) -> u32 { return min(start[min(block * ${block}u, ${tokens - 1}u)] / ${block}u, block); }
fn lastQueriesOf(block: u32) -> u32 {
  let finish = min(end[min(block * ${block}u + ${block - 1}u, ${tokens - 1}u)], ${tokens}u);
  return max(block + 1u, (finish + ${block - 1}u) / ${block}u);
}
@compute @workgroup_size(${threads})
fn main(@builtin(local_invocation_index) local: u32) {
  let begin = local * ${own}u;
  let finish = min(begin + ${own}u, ${blocks}u);
  var count = 0u;
  for (var i = begin; i < finish; i++) { count += i - firstKeysOf(i) + 1u; }
  counts[local] = count;
  workgroupBarrier();
  var number = 0u; var total = 0u;
  for (var other = 0u; other < ${active}u; other++) {
    if (other < local) { number += counts[other]; }
    total += counts[other];
  }
  for (var turn = 0u; turn < ${own}u; turn++) {
    let i = begin + turn;
    let first = firstKeysOf(i);
    let last = lastQueriesOf(i);
    if (i < finish) {
      pairs[${at.base}u + i] = number - first;
      pairs[${at.firstKeys}u + i] = first;
      pairs[${at.lastQueries}u + i] = last;
      for (var j = first; j <= i && number < ${pairs}u; j++) {
        pairs[${at.list}u + number] = (i << 16u) | j;
        number++;
      }
    }
    let less = vec2u(i - first, last - i);
    var place = vec2u();
    for (var some = 0u; some < ${blocks}u; some += ${threads}u) {
      workgroupBarrier();
      let mine = some + local;
      spans[local] = vec2u(mine - firstKeysOf(mine), lastQueriesOf(mine) - mine);
      workgroupBarrier();
      for (var other = some; other < min(some + ${threads}u, ${blocks}u); other++) {
        let more = spans[other - some];
        place += select(vec2u(), vec2u(1u), (more > less) | ((more == less) & vec2<bool>(other < i)));
      }
    }
    if (i < finish) {
      pairs[${at.queryOrder}u + place.x] = i;
      pairs[${at.keyOrder}u + place.y] = i;
    }
  }
  for (var rest = total + local; rest < ${pairs}u; rest += ${threads}u) { pairs[${at.list}u + rest] = 0xffffffffu; }
  if (local == 0u) { pairs[0] = select(0u, ${tooMany}u, total > ${pairs}u); }
}
`;
  return { code, workgroups: [1, 1, 1], ...bound(places) };
}

/** pairs → pairs: the next round. */
function nextRoundPass(operands: readonly Operand[], traits: DeviceTraits): Pass {
  const places = [operands.findIndex(({ name }) => name === "pairs")];
  const { directives, bindings, bound } = storage(traits, places.map((place) => operands[place]));
  const code = `${directives}${bindings}
@compute @workgroup_size(1)
fn main() { if (pairs[0] != ${tooMany}u) { pairs[0] += 1u; } }
`;
  return { code, workgroups: [1, 1, 1], ...bound(places) };
}

/** Passes that work through all pairs, given those of one round. */
export function roundPasses(
  rounds: Rounds,
  operands: readonly Operand[],
  traits: DeviceTraits,
  round: readonly Pass[],
): Pass[] {
  const next = nextRoundPass(operands, traits);
  const rest = Array.from({ length: rounds.count - 1 }, () => [next, ...round]).flat();
  return [pairsPass(rounds, operands, traits), ...round, ...rest];
}
