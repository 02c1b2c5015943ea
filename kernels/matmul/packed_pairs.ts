/**
 * Packed products of `f16`, two at once: a pair is two neighbouring terms of one line. Each sum of a tile is a pair too, one
 * of its even and one of its odd terms, so that a step multiplies pairs by pairs and no number has to be spread over both
 * halves of a register. That matters: an H200 has two units that do such a product, and only one of them takes a half of an
 * operand for both (`HFMA2` does, `HFMA2.MMA` does not). Both halves join the `f32` sums after a run of tiles.
 */
import { type Panel, upTo } from "./text.ts";

/** Sizes of a tile, as `Tiling` has them; rows and columns are multiples of 8. */
export interface PairTiling {
  readonly rows: number;
  readonly columns: number;
  readonly blockRows: number;
  readonly blockColumns: number;
  readonly depth: number;
}

/** Type of a tile: pairs of terms outermost, then four lines at a time; one more than it holds, as for other tiles. */
export const pairTile = (outer: number, depth: number) =>
  `array<array<array<vec4<f16>, 2>, ${outer / 4 + 1}>, ${depth / 2}>`;

/**
 * Text that brings one tile into workgroup memory, by way of registers: an invocation takes blocks of four lines by four
 * terms, and stores pairs of four lines at once, whichever way they lie in memory.
 */
export function stagePairs(
  side: "A" | "B",
  panel: Panel,
  outer: number,
  { depth }: PairTiling,
  threads: number,
  first: string,
) {
  const quads = outer / 4, blocks = quads * depth / 4, rounds = Math.ceil(blocks / threads);
  const alongDepth = panel.contiguous === "depth";
  const guard = (round: number, text: string) =>
    (round + 1) * threads <= blocks ? `{ ${text} }` : `if (local < ${blocks - round * threads}u) { ${text} }`;
  // Lanes go along memory. Where that is the depth, two blocks of lines take turns, as neighbours along it would store to
  // one bank.
  const index = (round: number) =>
    `let block = ${round * threads}u + local; ${
      alongDepth
        ? `let term = block / 2u % ${depth / 4}u; let quad = block / ${depth / 2}u * 2u + block % 2u;`
        : `let term = block / ${quads}u; let quad = block % ${quads}u;`
    }`;
  const names = (round: number) => upTo(4).map((i) => `next${side}${round}_${i}`);
  const pairs = (round: number, p: number) => {
    const next = names(round);
    const pair = (line: number) =>
      alongDepth
        ? `${next[line]}.${p === 0 ? "xy" : "zw"}`
        : `vec2<f16>(${next[2 * p]}[${line}], ${next[2 * p + 1]}[${line}])`;
    return `array<vec4<f16>, 2>(vec4<f16>(${pair(0)}, ${pair(1)}), vec4<f16>(${pair(2)}, ${pair(3)}))`;
  };
  const each = (text: (round: number) => string) =>
    upTo(rounds).map((round) => guard(round, `${index(round)} ${text(round)}`)).join("\n    ");
  return {
    declare: upTo(rounds).flatMap(names).map((name) => `var ${name} = vec4<f16>();`).join(" "),
    load: (k0: string) =>
      each((round) =>
        names(round).map((name, i) =>
          alongDepth
            ? `${name} = load${side}(${first} + quad * 4u + ${i}u, ${k0} + term * 4u, z);`
            : `${name} = load${side}(${first} + quad * 4u, ${k0} + term * 4u + ${i}u, z);`
        ).join(" ")
      ),
    store: each((round) => upTo(2).map((p) => `tile${side}[term * 2u + ${p}u][quad] = ${pairs(round, p)};`).join(" ")),
  };
}

/** Texts that begin the sums of a run of tiles, multiply one, and add them to those in `f32`: `s0_0` and so on by row and four columns. */
export function multiplyPairs({ rows, columns, blockRows, blockColumns, depth }: PairTiling) {
  const down = rows / blockRows, across = columns / blockColumns;
  const rowQuads = upTo(blockRows / 4), columnQuads = upTo(blockColumns / 4);
  const read = (name: string, quad: number, place: string) =>
    upTo(2).map((half) => `let ${name}${quad}_${half} = ${place}[${half}];`).join(" ");
  const pair = (name: string, i: number) => `${name}${i >> 2}_${(i & 3) >> 1}.${i & 1 ? "zw" : "xy"}`;
  const sums = upTo(blockRows).flatMap((i) => upTo(blockColumns).map((j) => ({ i, j, name: `h${i}_${j}` })));
  const step = (p: number) => `
    { ${rowQuads.map((r) => read("a", r, `tileA[${p}][ty + ${r * down}u]`)).join(" ")}
      ${columnQuads.map((q) => read("b", q, `tileB[${p}][tx + ${q * across}u]`)).join(" ")}
${sums.map(({ i, j, name }) => `      ${name} = fma(${pair("a", i)}, ${pair("b", j)}, ${name});`).join("\n")} }`;
  const four = (i: number, q: number, term: "x" | "y") =>
    `vec4f(${upTo(4).map((j) => `f32(h${i}_${4 * q + j}.${term})`).join(", ")})`;
  return {
    begin: sums.map(({ name }) => `var ${name} = vec2<f16>();`).join(" "),
    tile: upTo(depth / 2).map(step).join(""),
    end: upTo(blockRows).flatMap((i) =>
      columnQuads.map((q) => `s${i}_${q} += ${four(i, q, "x")} + ${four(i, q, "y")};`)
    ).join(" "),
  };
}
