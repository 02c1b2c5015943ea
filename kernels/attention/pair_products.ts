/**
 * Products of the weights of pairs of blocks, and of their gradients (`rounds.ts`), with what they weigh: tiled as any
 * product in `matmul`. All three gradients are of one dispatch, as a round has too few tiles of one to fill a device.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { lineOf, multiply, stage, type Tile } from "../matmul/workgroup_tiles.ts";
import { storage } from "../storage.ts";
import { lanes } from "./pair_scores.ts";
import { pairsText, type Rounds, slotsOf } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";

/** A tile has the rows of a block of tokens. */
export type PairProducts = Omit<Tile, "rows">;

/** pairs, scratch, q, k, dO → dQ, which sums over the keys of each query, and dK and dV, which sum over the queries of each key. */
export function pairProductsPass(
  tiling: PairProducts,
  rounds: Rounds,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass {
  const { tokens, heads, kvHeads, headDim } = shape, { block, blocks } = rounds;
  const { columns, blockRows, blockColumns, depth } = tiling;
  const names = ["pairs", "scratch", "q", "k", "dO", "dQ", "dK", "dV"];
  const places = names.map((name) => operands.findIndex((operand) => operand.name === name));
  const bound = places.map((place): Operand => {
    const operand = operands[place];
    return operand.access === "scratch" ? { ...operand, access: "read" } : operand;
  });
  const vectors = Object.fromEntries(names.slice(1).map((name) => [name, "vec4f"]));
  const stored = storage(traits, bound, vectors);
  const tile: Tile = { ...tiling, rows: block };
  const across = columns / blockColumns, down = block / blockRows, threads = across * down;
  const group = heads / kvHeads, owners = rounds.heads / group;
  const columnTiles = Math.ceil(headDim / columns), quads = headDim / 4;
  const tiles = (rounds.heads + 2 * owners) * columnTiles;
  const workgroups = spread(tiles * blocks);
  const [overKeys, overQueries] = (["depth", "outer"] as const).map((contiguous) =>
    stage("A", { contiguous }, block, tile, threads, "0u")
  );
  const right = stage("B", { contiguous: "outer" }, columns, tile, threads, "firstColumn");
  const columnQuads = upTo(blockColumns / 4), rows = upTo(blockRows);
  const perBlock = block / depth;
  /** Brings what a step of the sum needs. */
  const load = (step: string) =>
    `{
      let other = first + ${step} / ${perBlock}u;
      let within = ${step} % ${perBlock}u * ${depth}u;
      if (part == 0u) {
        let z = vec2u(${slotsOf(rounds)}u + slotOf(headPlace, baseOf(block) + other), part);
        ${overKeys.load("within")}
      } else {
        let z = vec2u(select(0u, ${slotsOf(rounds)}u, part == 2u) + slotOf(headPlace, baseOf(other) + block), part);
        ${overQueries.load("within")}
      }
      let token = other * ${block}u + within;
      let z = vec2u(head, part);
      ${right.load("token")}
    }`;
  const guards = [
    ...(tokens % block ? [`token < ${tokens}u`] : []),
    ...(headDim % columns ? [`column < ${headDim}u`] : []),
  ];
  const keyHead = group === 1 ? "z.x" : `z.x / ${group}u`;
  const code = `${stored.directives}
${stored.bindings}
${pairsText(rounds)}
var<workgroup> tileA: array<array<vec4f, ${lineOf(block)}>, ${depth}>;
var<workgroup> tileB: array<array<vec4f, ${lineOf(columns)}>, ${depth}>;
fn loadA(outer: u32, depth: u32, z: vec2u) -> vec4f {
  let place = select(vec2u(depth, outer), vec2u(outer, depth), z.y == 0u);
  let at = (z.x * ${block}u + place.x) * ${block / 4}u + place.y / 4u;
  return ${stored.load("scratch", "at")};
}
fn loadB(column: u32, token: u32, z: vec2u) -> vec4f {
  let quad = min(column / 4u, ${quads - 1}u);
  let line = min(token, ${tokens - 1}u);
  let at = (line * ${heads}u + z.x) * ${quads}u + quad;
  if (z.y == 0u) { let at = (line * ${kvHeads}u + ${keyHead}) * ${quads}u + quad; return ${stored.load("k", "at")}; }
  if (z.y == 1u) { return ${stored.load("dO", "at")}; }
  return ${stored.load("q", "at")};
}
fn finish(token: u32, column: u32, z: vec2u, sum: vec4f) {
  ${guards.length > 0 ? `if (!(${guards.join(" && ")})) { return; }` : ""}
  let at = (token * select(${kvHeads}u, ${heads}u, z.y == 0u) + z.x) * ${quads}u + column / 4u;
  if (z.y == 0u) { ${stored.store("dQ", "at", "sum")} }
  else if (z.y == 1u) { ${stored.store("dV", "at", "sum")} }
  else { ${stored.store("dK", "at", "sum")} }
}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  let firstColumn = id % ${columnTiles}u * ${columns}u;
  let which = id % ${tiles}u / ${columnTiles}u;
  let place = id / ${tiles}u;
  let part = select(select(2u, 1u, which < ${rounds.heads + owners}u), 0u, which < ${rounds.heads}u); // dQ, dV, dK
  let owner = which - select(select(${rounds.heads + owners}u, ${rounds.heads}u, part == 1u), 0u, part == 0u);
  let ownHead = select(firstHead()${group === 1 ? "" : ` / ${group}u`}, firstHead(), part == 0u) + owner;
  if (place >= ${blocks}u || ownHead >= select(${kvHeads}u, ${heads}u, part == 0u)) { return; }
  ${lanes(across, down)}
  ${overKeys.declare} ${right.declare}
  let block = select(keysAt(place), queriesAt(place), part == 0u); // the longest first
  let first = select(block, min(firstKeys(block), block), part == 0u);
  let steps = (select(max(lastQueries(block), block + 1u), block + 1u, part == 0u) - first) * ${perBlock}u;
  ${rows.flatMap((i) => columnQuads.map((q) => `var s${i}_${q} = vec4f();`)).join(" ")}
  ${
    group === 1 ? `let head = ownHead; let headPlace = owner;` : `let members = select(${group}u, 1u, part == 0u);
  for (var headPlace = owner * members; headPlace < (owner + 1u) * members; headPlace++) {
  let head = firstHead() + headPlace;`
  }
  ${load("0u")}
  for (var step = 0u; step < steps; step++) {
    if (part == 0u) {
      ${overKeys.store}
    } else {
      ${overQueries.store}
    }
    ${right.store}
    workgroupBarrier();
    let next = min(step + 1u, steps - 1u);
    ${load("next")}
    ${multiply(tile).tile}
    workgroupBarrier();
  }
  ${group === 1 ? "" : "}"}
  ${
    rows.flatMap((i) =>
      columnQuads.map((q) =>
        `finish(block * ${block}u + ${(i >> 2) * 4 * down + (i & 3)}u + ty * 4u, firstColumn + ${
          q * 4 * across
        }u + tx * 4u, vec2u(ownHead, part), s${i}_${q});`
      )
    ).join("\n  ")
  }
}
`;
  return { code, workgroups, ...stored.bound(places) };
}
