/** Weights of pairs of blocks and their gradients (`rounds.ts`): two short products for each pair, in blocks of registers. */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { lineOf, multiply, stage, type Tile } from "../matmul/workgroup_tiles.ts";
import { float } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { pairsText, type Rounds, slotsOf } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";

/** A tile is a part of a pair: its rows are queries, its columns keys. */
export interface PairScores extends Tile {
  /** Sums of both products are alive together, so that weights need not come back from scratch. */
  readonly together: boolean;
  /** Both products are made at once, where sums are alive together. */
  readonly atOnce?: boolean;
}

/** q, k, v, dO, rowData, pairs → scratch: exp(scores − logSumExp), and the scaled gradients of scores. */
export function pairScoresPass(
  tile: PairScores,
  rounds: Rounds,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass {
  const { tokens, heads, kvHeads, headDim, scale } = shape, { block, blocks } = rounds;
  const names = ["q", "k", "v", "dO", "rowData", "pairs", "scratch"];
  const places = names.map((name) => operands.findIndex((operand) => operand.name === name));
  const bound = places.map((place): Operand => {
    const operand = operands[place];
    return operand.name === "rowData" || operand.name === "pairs" ? { ...operand, access: "read" } : operand;
  });
  const types = Object.fromEntries(
    names.filter((name) => !["pairs", "rowData"].includes(name)).map((n) => [n, "vec4f"]),
  );
  const stored = storage(traits, bound, { ...types, rowData: "vec4u" });
  const { rows, columns, blockRows, blockColumns, depth, together, atOnce = false } = tile;
  const across = columns / blockColumns, down = rows / blockRows, threads = across * down;
  const tilesAcross = block / columns, parts = tilesAcross * block / rows;
  const workgroups = spread(slotsOf(rounds) * parts), quads = headDim / 4;
  const sides = [
    stage("A", { contiguous: "depth" }, rows, tile, threads, "firstQuery"),
    stage("B", { contiguous: "depth" }, columns, tile, threads, "firstKey"),
  ] as const;
  const load = (depth: string) => sides.map((side) => side.load(depth)).join("\n");
  const loader = (side: string, names: readonly [string, string], heads: number, head: string) => `
fn load${side}(token: u32, depth: u32, z: vec2u) -> vec4f {
  let at = (min(token, ${tokens - 1}u) * ${heads}u + z.${head}) * ${quads}u + min(depth / 4u, ${quads - 1}u);
  if (z.x == 0u) { return ${stored.load(names[0], "at")}; }
  return ${stored.load(names[1], "at")};
}`;
  const group = heads / kvHeads;
  const columnQuads = upTo(blockColumns / 4), own = upTo(blockRows);
  const rowOf = (i: number) => `${(i >> 2) * 4 * down + (i & 3)}u + ty * 4u`;
  const columnOf = (q: number) => `${q * 4 * across}u + tx * 4u`;
  const sums = (name: string, text: (i: number, q: number) => string) =>
    own.flatMap((i) => columnQuads.map((q) => text(i, q).replaceAll("$", `${name}${i}_${q}`))).join("\n  ");
  const product = (z: string, after: string) => `
  for (var k0 = 0u; k0 < ${headDim}u; k0 += ${depth}u) {
    ${sides.map(({ store }) => store).join("\n    ")}
    workgroupBarrier();
    {
      let last = k0 + ${depth}u >= ${headDim}u;
      let z = select(vec2u(${z}, head), vec2u(${after}, head), last);
      let next = select(k0 + ${depth}u, 0u, last);
      ${load("next")}
    }
    ${multiply(tile).tile}
    workgroupBarrier();
  }`;
  /** The text of the second product where it has tiles of its own. */
  const turned = (text: string) =>
    text.replaceAll(/\b(tile|next)A/g, "$1C").replaceAll(/\b(tile|next)B/g, "$1D").replaceAll(/\bs(\d+_\d+)\b/g, "d$1");
  const of = (z: string, text: string) => `{ let z = vec2u(${z}, head); ${text} }`;
  const bothProducts = `
  ${of("0u", load("0u"))} ${of("1u", turned(load("0u")))}
  for (var k0 = 0u; k0 < ${headDim}u; k0 += ${depth}u) {
    ${sides.map(({ store }) => `${store} ${turned(store)}`).join("\n    ")}
    workgroupBarrier();
    let next = min(k0 + ${depth}u, ${headDim - depth}u);
    ${of("0u", load("next"))} ${of("1u", turned(load("next")))}
    ${multiply(tile).tile} ${turned(multiply(tile).tile)}
    workgroupBarrier();
  }`;
  const at = (i: number, q: number) => `line + (${rowOf(i)}) * ${block / 4}u + ${q * across}u + tx`;
  const gradients = `${slotsOf(rounds) * block ** 2 / 4}u`;
  // The sums of the second product have the first one's names where these are done with.
  const second = (text: string) => together ? text.replaceAll(/\bs(\d+_\d+)\b/g, "d$1") : text;
  const delta = (i: number) => `vec4f(-bitcast<f32>(data${i}.y))`;
  const weights = `
  ${
    own.map((i) => `let data${i} = rowData[min(firstQuery + ${rowOf(i)}, ${tokens - 1}u) * ${heads}u + head];`).join(
      "\n  ",
    )
  }
  ${sums("s", (i) => `$ = exp2(fma($, vec4f(${float(scale * Math.LOG2E)}), vec4f(-bitcast<f32>(data${i}.x))));`)}
  if (edge) {
    ${columnQuads.map((q) => `let column${q} = vec4u(firstKey + ${columnOf(q)}) + vec4u(0u, 1u, 2u, 3u);`).join(" ")}
    ${
    own.map((i) =>
      `{ let row = firstQuery + ${rowOf(i)}; ${
        columnQuads.map((q) =>
          `s${i}_${q} = select(vec4f(), s${i}_${q}, (column${q} >= vec4u(data${i}.z)) & (column${q} <= vec4u(row)) & vec4<bool>(row < ${tokens}u));`
        ).join(" ")
      } }`
    ).join("\n    ")
  }
  }
  ${sums("s", (i, q) => stored.store("scratch", at(i, q), "$"))}`;
  const code = `${stored.directives}
${stored.bindings}
${pairsText(rounds)}
var<workgroup> tileA: array<array<vec4f, ${lineOf(rows)}>, ${depth}>;
var<workgroup> tileB: array<array<vec4f, ${lineOf(columns)}>, ${depth}>;
${
    atOnce
      ? `var<workgroup> tileC: array<array<vec4f, ${lineOf(rows)}>, ${depth}>;
var<workgroup> tileD: array<array<vec4f, ${lineOf(columns)}>, ${depth}>;`
      : ""
  }
${loader("A", ["q", "dO"], heads, "y")}
${loader("B", ["k", "v"], kvHeads, group === 1 ? "y" : `y / ${group}u`)}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  let part = id % ${parts}u;
  let number = id / ${parts}u % ${rounds.pairs}u;
  let headPlace = id / ${parts * rounds.pairs}u;
  let head = firstHead() + headPlace;
  let pair = pairAt(number);
  if (headPlace >= ${rounds.heads}u || head >= ${heads}u || pair.x >= ${blocks}u) { return; }
  let rowWithin = part / ${tilesAcross}u * ${rows}u;
  let columnWithin = part % ${tilesAcross}u * ${columns}u;
  let line = (slotOf(headPlace, number) * ${block}u + rowWithin) * ${block / 4}u + columnWithin / 4u;
  let firstQuery = pair.x * ${block}u + rowWithin;
  let firstKey = pair.y * ${block}u + columnWithin;
  let lastQuery = min(firstQuery + ${rows - 1}u, ${tokens - 1}u);
  ${lanes(across, down)}
  if (firstKey > lastQuery) {
    ${
    own.flatMap((i) =>
      columnQuads.flatMap((q) =>
        [at(i, q), `${gradients} + ${at(i, q)}`].map((at) => stored.store("scratch", at, "vec4f()"))
      )
    ).join("\n    ")
  }
    return;
  }
  let edge = firstKey + ${columns - 1}u > firstQuery || lastQuery < firstQuery + ${rows - 1}u ||
    rowData[lastQuery * ${heads}u + head].z > firstKey;
  ${sides.map(({ declare }) => `${declare} ${atOnce ? turned(declare) : ""}`).join(" ")}
  ${sums("s", () => "var $ = vec4f();")}
  ${
    atOnce ? `${sums("d", () => "var $ = vec4f();")} ${bothProducts}` : `
  ${of("0u", load("0u"))}
  ${product("0u", "1u")}
  ${
      together ? sums("d", () => "var $ = vec4f();") : `${weights}
  ${sums("s", (i) => `$ = ${delta(i)};`)}`
    }
  ${second(product("1u", "1u"))}`
  }
  ${together ? weights : ""}
  ${
    sums("s", (i, q) =>
      stored.store(
        "scratch",
        `${gradients} + ${at(i, q)}`,
        together
          ? `$ * (d${i}_${q} + ${delta(i)}) * ${float(scale)}`
          : `${stored.load("scratch", at(i, q))} * $ * ${float(scale)}`,
      ))
  }
}
`;
  return { code, workgroups, ...stored.bound(places) };
}

/** Places of an invocation in the grid: lanes of a subgroup of 32 are 8 x 4 where the grid has such blocks. */
export const lanes = (across: number, down: number): string =>
  across % 8 === 0 && down % 4 === 0
    ? `let tx = local / 32u % ${across / 8}u * 8u + local % 8u;
  let ty = local / ${4 * across}u * 4u + local / 8u % 4u;`
    : `let tx = local % ${across}u;
  let ty = local / ${across}u;`;
