/** Products of the weights of pairs of blocks (`rounds.ts`) with what they weigh, tiled as any product in `matmul`. */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { lineOf, multiply, stage, type Tile } from "../matmul/workgroup_tiles.ts";
import { storage } from "../storage.ts";
import { lanes } from "./pair_scores.ts";
import { pairsText, type Rounds } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";

/** A tile has the rows of a block of tokens. */
export type PairProduct = Omit<Tile, "rows">;

/**
 * weights (or their gradients), pairs, what is weighed → sums of it.
 *
 * @param over whether a sum goes over keys, for each query, or over queries, for each key
 */
export function pairProductPass(
  tiling: PairProduct,
  rounds: Rounds,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  over: "keys" | "queries",
  [weights, right, output]: readonly [string, string, string],
): Pass {
  const { tokens, heads, kvHeads, headDim } = shape, { block, blocks } = rounds;
  const names = [weights, "pairs", right, output];
  const places = names.map((name) => operands.findIndex((operand) => operand.name === name));
  // One text for both sums over queries.
  const called = ["weights", "pairs", "right", "sums"];
  const bound = places.map((place, i): Operand => {
    const operand = { ...operands[place], name: called[i] };
    return i < 2 ? { ...operand, access: "read" } : operand;
  });
  const stored = storage(traits, bound, { weights: "vec4f", right: "vec4f", sums: "vec4f" });
  const { columns, blockRows, blockColumns, depth } = tiling;
  const tile: Tile = { ...tiling, rows: block };
  const across = columns / blockColumns, down = block / blockRows, threads = across * down;
  const overKeys = over === "keys", group = heads / kvHeads;
  const columnTiles = Math.ceil(headDim / columns), quads = headDim / 4;
  const owners = overKeys ? rounds.heads : rounds.heads / group;
  const workgroups = spread(owners * blocks * columnTiles);
  const sides = [
    stage("A", { contiguous: overKeys ? "depth" : "outer" }, block, tile, threads, "0u"),
    stage("B", { contiguous: "outer" }, columns, tile, threads, "firstColumn"),
  ] as const;
  const rightHeads = overKeys ? kvHeads : heads, ownHeads = overKeys ? heads : kvHeads;
  const columnQuads = upTo(blockColumns / 4), rows = upTo(blockRows);
  const perBlock = block / depth;
  /** Brings what step \`t\` of the sum needs. */
  const load = (t: string) =>
    `{
      let other = first + ${t} / ${perBlock}u;
      let within = ${t} % ${perBlock}u * ${depth}u;
      { let z = slotOf(headPlace, ${overKeys ? "baseOf(block) + other" : "baseOf(other) + block"}); ${
      sides[0].load("within")
    } }
      { let z = ${overKeys && group > 1 ? `head / ${group}u` : "head"}; let token = other * ${block}u + within; ${
      sides[1].load("token")
    } }
    }`;
  const guards = [
    ...(tokens % block ? [`token < ${tokens}u`] : []),
    ...(headDim % columns ? [`column < ${headDim}u`] : []),
  ];
  const code = `${stored.directives}
${stored.bindings}
${pairsText(rounds)}
var<workgroup> tileA: array<array<vec4f, ${lineOf(block)}>, ${depth}>;
var<workgroup> tileB: array<array<vec4f, ${lineOf(columns)}>, ${depth}>;
fn loadA(outer: u32, depth: u32, slot: u32) -> vec4f {
  let at = ${
    overKeys
      ? `(slot * ${block}u + outer) * ${block / 4}u + depth / 4u`
      : `(slot * ${block}u + depth) * ${block / 4}u + outer / 4u`
  };
  return ${stored.load("weights", "at")};
}
fn loadB(column: u32, token: u32, head: u32) -> vec4f {
  let at = (min(token, ${tokens - 1}u) * ${rightHeads}u + head) * ${quads}u + min(column / 4u, ${quads - 1}u);
  return ${stored.load("right", "at")};
}
fn finish(token: u32, column: u32, head: u32, sum: vec4f) {
  ${guards.length > 0 ? `if (!(${guards.join(" && ")})) { return; }` : ""}
  let at = (token * ${ownHeads}u + head) * ${quads}u + column / 4u;
  ${stored.store("sums", "at", "sum")}
}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  let firstColumn = id % ${columnTiles}u * ${columns}u;
  let owner = id / ${columnTiles}u % ${owners}u;
  let place = id / ${columnTiles * owners}u;
  let ownHead = firstHead()${overKeys || group === 1 ? "" : ` / ${group}u`} + owner;
  if (place >= ${blocks}u || ownHead >= ${ownHeads}u) { return; }
  // The longest of a segment first.
  let block = ${overKeys ? `${blocks - 1}u - place` : "place"};
  let first = ${overKeys ? "min(firstKeys(block), block)" : "block"};
  let steps = (${overKeys ? "block + 1u" : "max(lastQueries(block), block + 1u)"} - first) * ${perBlock}u;
  ${lanes(across, down)}
  ${sides.map(({ declare }) => declare).join(" ")}
  ${rows.flatMap((i) => columnQuads.map((q) => `var s${i}_${q} = vec4f();`)).join(" ")}
  ${
    overKeys || group === 1
      ? `let head = ownHead; let headPlace = owner;`
      : `for (var headPlace = owner * ${group}u; headPlace < owner * ${group}u + ${group}u; headPlace++) {
  let head = firstHead() + headPlace;`
  }
  ${load("0u")}
  for (var step = 0u; step < steps; step++) {
    ${sides.map(({ store }) => store).join("\n    ")}
    workgroupBarrier();
    let next = min(step + 1u, steps - 1u);
    ${load("next")}
    ${multiply(tile).tile}
    workgroupBarrier();
  }
  ${overKeys || group === 1 ? "" : "}"}
  ${
    rows.flatMap((i) =>
      columnQuads.map((q) =>
        `finish(block * ${block}u + ${(i >> 2) * 4 * down + (i & 3)}u + ty * 4u, firstColumn + ${
          q * 4 * across
        }u + tx * 4u, ownHead, s${i}_${q});`
      )
    ).join("\n  ")
  }
}
`;
  return { code, workgroups, ...stored.bound(places) };
}
