/** Weights of pairs of blocks and their gradients (`rounds.ts`): two short products for each pair, in blocks of registers. */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { lineOf, multiply, stage, type Tile } from "../matmul/workgroup_tiles.ts";
import { float } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { pairsText, type Rounds, slotsOf } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";

/** A part of a pair, that a workgroup makes: rows are queries, columns keys. */
export type PairScores = Tile;

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
  const { rows, columns, blockRows, blockColumns, depth } = tile;
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
  const of = (z: string, text: string) => `{ let z = vec2u(${z}, head); ${text} }`;
  /** Queries and keys, or gradients of what came out and values, whose first tile is asked for while the former are done. */
  const product = (z: "0u" | "1u") => `
  for (var k0 = 0u; k0 < ${headDim}u; k0 += ${depth}u) {
    ${sides.map(({ store }) => store).join("\n    ")}
    workgroupBarrier();
    let last = k0 + ${depth}u >= ${headDim}u;
    let next = select(k0 + ${depth}u, 0u, last);
    ${of(z === "0u" ? "select(0u, 1u, last)" : "1u", load("next"))}
    ${multiply(tile).tile}
    workgroupBarrier();
  }`;
  const at = (i: number, q: number) => `line + (${rowOf(i)}) * ${block / 4}u + ${q * across}u + tx`;
  const gradients = `${slotsOf(rounds) * block ** 2 / 4}u`;
  const code = `${stored.directives}
${stored.bindings}
${pairsText(rounds)}
var<workgroup> tileA: array<array<vec4f, ${lineOf(rows)}>, ${depth}>;
var<workgroup> tileB: array<array<vec4f, ${lineOf(columns)}>, ${depth}>;
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
  ${sides.map(({ declare }) => declare).join(" ")}
  ${sums("s", () => "var $ = vec4f();")} ${sums("d", () => "var $ = vec4f();")}
  ${of("0u", load("0u"))}
  ${product("0u")}
  ${product("1u").replaceAll(/\bs(\d+_\d+)\b/g, "d$1")}
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
  ${sums("s", (i, q) => stored.store("scratch", at(i, q), "$"))}
  ${
    sums("s", (i, q) =>
      stored.store(
        "scratch",
        `${gradients} + ${at(i, q)}`,
        `$ * (d${i}_${q} - bitcast<f32>(data${i}.y)) * ${float(scale)}`,
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
