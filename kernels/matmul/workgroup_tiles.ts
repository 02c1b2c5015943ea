/**
 * v2, for GPUs: a workgroup brings a tile of A and one of B into workgroup memory, both with the depth outermost, so that
 * an invocation reads `vec4f`s along rows and columns and keeps a block of C in registers. Where C has too few tiles to
 * fill a device, the depth is split: each part writes its sums to scratch, and a second pass adds the parts in order
 * (deterministic, no atomics).
 *
 * What it owes its speed to, beside the size of the block in registers:
 * - inner loops are unrolled by the generator;
 * - the next tile is asked for before the present one is used;
 * - tiles are arrays of arrays: the compiler of WGSL guards every index that is not constant, and so guards one place
 *   along a line, which all steps of the depth share, instead of one index a step;
 * - the lanes of a subgroup form a block of 8 x 4, which reads the fewest different words.
 *
 * Where the options ask for packed products of `f16`, tiles hold pairs, and a tile's sums are pairs too (`packed_pairs.ts`).
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { storage } from "../storage.ts";
import { multiplyPairs, pairTile, stagePairs } from "./packed_pairs.ts";
import { epilogueNames, type MatmulShape, placesOf } from "./shape.ts";
import { elementTypes, finisher, loader, type Panel, panelsOf, reader, upTo } from "./text.ts";

/** A workgroup's part of C and how invocations share in it. */
export interface Tile {
  /** Rows and columns of a workgroup's part of C, multiples of the block's. */
  readonly rows: number;
  readonly columns: number;
  /** Rows and columns of an invocation's block, multiples of 4. */
  readonly blockRows: number;
  readonly blockColumns: number;
  /** Terms a tile holds: a multiple of 4. */
  readonly depth: number;
}

export interface Tiling extends Tile {
  /** Parts of the depth. */
  readonly splits: number;
  /** Terms a part sums, a multiple of what the tiles of a run hold. */
  readonly partDepth: number;
  /** Rows of tiles that are worked on together. @default {one, or all where they are fewer than the columns of tiles} */
  readonly together?: number;
  /** Tiles of a run, whose sums are `f16` where products are packed. @default {1} */
  readonly run?: number;
}

/** Workgroups below which a large device idles, and those that share its processors evenly. */
const leastGroups = 256, evenGroups = 768;
/** Shortest depth that is worth a part of its own. */
const leastPart = 256;

/** Tiles and the blocks that invocations hold of them, best first. */
const shapes = [
  { rows: 128, columns: 64, blockRows: 8, blockColumns: 8, depth: 16 },
  { rows: 64, columns: 64, blockRows: 8, blockColumns: 8, depth: 16 },
  { rows: 64, columns: 32, blockRows: 8, blockColumns: 4, depth: 32 },
  { rows: 32, columns: 64, blockRows: 4, blockColumns: 8, depth: 32 },
  { rows: 32, columns: 32, blockRows: 4, blockColumns: 4, depth: 32 },
] as const;

/**
 * The largest tile that still fills a device, with its depth split where C alone has too few. Depends on sizes alone, as
 * scratch must.
 */
export function tilingOf({ m, n, k, batch }: Pick<MatmulShape, "m" | "n" | "k" | "batch">): Tiling {
  const groupsOf = ({ rows, columns }: { rows: number; columns: number }) =>
    Math.ceil(m / rows) * Math.ceil(n / columns) * batch;
  const parts = Math.max(1, Math.floor(k / leastPart));
  // A tile reaches past C by less than half.
  const fitting = shapes.filter(({ rows, columns }) =>
    (rows === 32 || m > rows / 2) && (columns === 32 || n > columns / 2)
  );
  const shape = fitting.find((shape) => groupsOf(shape) * parts >= leastGroups) ?? fitting.at(-1)!;
  const groups = groupsOf(shape);
  const wanted = groups >= leastGroups ? 1 : Math.min(Math.round(evenGroups / groups), parts);
  const partDepth = Math.ceil(k / wanted / shape.depth) * shape.depth;
  return { ...shape, splits: Math.ceil(k / partDepth), partDepth };
}

/** Tiles of 128 x 128 of which a large device needs several a processor before they pay. */
const manyGroups = 500;
/** The same for the broad blocks, of which fewer are at work at once: 4096 x 2304 falls from 38 to 33 TFLOP/s with them. */
const manyBroadGroups = 1000;
const large = { rows: 128, columns: 128, blockRows: 8, blockColumns: 8, depth: 16, together: 16 } as const;
/** Registers of an invocation hold no more sums than these 128. */
const broad = { ...large, blockColumns: 16 } as const;
const wide = { rows: 64, columns: 128, blockRows: 8, blockColumns: 8, depth: 16, together: 16 } as const;
/** Where products are packed, with runs of 64 terms: sums of half as many are `f16`. */
const packedTile = { rows: 64, columns: 64, blockRows: 8, blockColumns: 4, depth: 32, together: 16, run: 2 } as const;

/** All of them, for tuners. */
export const tilingShapes = [...shapes, large, wide, broad] as const;

/**
 * The tiling for a device: another than {@linkcode tilingOf} says where C is large and workgroup memory allows it. An
 * H200 in TFLOP/s, with tiles of 64 x 128 in blocks of 8 x 8 and of 128 x 128 in blocks of 8 x 16: 4096 x 4096 x 4096 `nn`
 * 43.7, 46.2; 8192 x 8192 x 8192 `nn` 45.4, 47.3 and `nt` 42.0, 47.9. Added to 50304 x 768 x 4096 `tn`, 64 x 128 42.2 and
 * 128 x 128 in blocks of 8 x 8 49.1. Packed, 64 x 128 with 16 and with 32 terms 46.2, 51.5.
 */
export function tilingFor(shape: MatmulShape, { limits }: DeviceTraits): Tiling {
  if (isPacked(shape)) return packedTiling(shape);
  const tiling = tilingOf(shape), { m, n, k, batch, transposeA } = shape;
  const groups = Math.ceil(m / 128) * Math.ceil(n / 128) * batch;
  if (tiling.splits > 1 || groups < manyGroups || n <= 64 || limits.maxComputeWorkgroupStorageSize < 17 << 10) {
    return tiling;
  }
  const chosen = transposeA ? large : groups < manyBroadGroups ? wide : broad;
  return { ...chosen, splits: 1, partDepth: Math.ceil(k / chosen.depth) * chosen.depth };
}

/** An H200 does 8192 x 8192 x 8192 at 70 TFLOP/s with this tile, 63 with 64 x 128 in blocks of 8 x 8. */
function packedTiling(shape: MatmulShape): Tiling {
  const tiling = tilingOf(shape), { rows, columns, depth, run } = packedTile, terms = depth * run;
  const partDepth = Math.ceil(shape.k / tiling.splits / terms) * terms;
  const tile = tiling.rows >= rows && tiling.columns >= columns ? packedTile : { ...tiling, depth, run };
  return { ...tile, splits: Math.ceil(shape.k / partDepth), partDepth };
}

const isPacked = ({ packed, types }: MatmulShape) => packed && types.a === "f16" && types.b === "f16";

export function workgroupTilePasses(
  shape: MatmulShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  tiling: Tiling = tilingFor(shape, traits),
): Pass[] {
  const { rows, columns, blockRows, blockColumns, depth, splits, partDepth, together, run = 1 } = tiling;
  const terms = depth * run;
  const { m, n, k, batch } = shape;
  const split = splits > 1;
  const across = columns / blockColumns, down = rows / blockRows, threads = across * down;
  const rowTiles = Math.ceil(m / rows), columnTiles = Math.ceil(n / columns);
  const total = rowTiles * columnTiles * batch * splits;
  const workgroups = spread(total);
  const { a, b } = panelsOf(shape);
  const guarded = k % terms !== 0;
  const places = placesOf(operands, ["a", "b", ...(split ? ["partial"] : epilogueNames(shape))]);
  // A partial product is a plain one whose batch has the parts as its leading dimension.
  const stored = { ...shape, accumulate: false, ...(split && { bias: false, residual: false }) };
  const adds = shape.accumulate && !split;

  const packed = isPacked(shape);
  const sides = [["A", a, rows, "firstRow"], ["B", b, columns, "firstColumn"]] as const;
  const [stageA, stageB] = sides.map(([side, panel, outer, first]) =>
    (packed ? stagePairs : stage)(side, panel, outer, tiling, threads, first)
  );
  const columnQuads = upTo(blockColumns / 4);
  const products = packed ? multiplyPairs(tiling) : multiply(tiling);

  // Lanes of a subgroup of 32 as 8 x 4 wherever the grid has such blocks; for pairs so that of neighbours by one or by two
  // lanes the former read the same rows and the latter the same columns, 1% faster.
  const blocked = across % 8 === 0 && down % 4 === 0;
  const lanes = blocked
    ? `let tx = local / 32u % ${across / 8}u * 8u + ${packed ? "(local & 1u) + ((local >> 2u) & 6u)" : "local % 8u"};
  let ty = local / ${4 * across}u * 4u + ${packed ? "((local >> 1u) & 3u)" : "local / 8u % 4u"};`
    : `let tx = local % ${across}u;
  let ty = local / ${across}u;`;
  const tile = (outer: number) => packed ? pairTile(outer, depth) : `array<array<vec4f, ${lineOf(outer)}>, ${depth}>`;
  const end = split
    ? `min(begin + ${partDepth}u, ${Math.ceil(k / terms) * terms}u)`
    : `${Math.ceil(k / terms) * terms}u`;
  const loop = `
  ${stageA.declare} ${stageB.declare}
  ${stageA.load("begin")} ${stageB.load("begin")}
  for (var k0 = begin; k0 < end; k0 += ${terms}u) {
    ${products.begin}
    ${
    upTo(run).map((tile) => `
    ${stageA.store} ${stageB.store}
    workgroupBarrier();
    let next${tile} = min(k0 + ${(tile + 1) * depth}u, end - ${depth}u); // the last one is brought twice
    ${stageA.load(`next${tile}`)} ${stageB.load(`next${tile}`)}
    ${products.tile}
    workgroupBarrier();`).join("")
  }
    ${products.end}
  }`;

  // Four rows of a block at a time, so that what C held before needs few registers.
  const finish = (group: number) => {
    const places = upTo(4).flatMap((r) =>
      columnQuads.map((q) => ({
        sum: `s${group * 4 + r}_${q}`,
        place: `firstRow + ${group * 4 * down + r}u + ty * 4u, firstColumn + ${q * 4 * across}u + tx * 4u, ${
          split ? "part" : "z"
        }`,
      }))
    );
    return [
      ...(adds ? places.map(({ sum, place }) => `${sum} += before(${place});`) : []),
      ...places.map(({ sum, place }) => `finish(${place}, ${sum});`),
    ].join("\n  ");
  };
  const rowsTogether = Math.min(together ?? (rowTiles < columnTiles ? rowTiles : 1), rowTiles);
  const perGroup = rowsTogether * columnTiles;
  const bound = storage(traits, places.map((place) => operands[place]), elementTypes(shape));
  const code = `${bound.directives}
${bound.bindings}
var<workgroup> tileA: ${tile(rows)};
var<workgroup> tileB: ${tile(columns)};
${loader("loadA", a, bound, guarded, rows, packed)}
${loader("loadB", b, bound, guarded, columns, packed)}
${adds ? reader(shape, bound) : ""}
${finisher(stored, { rows, columns }, bound, split ? "partial" : "c")}

@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  if (id >= ${total}u) { return; }
  let tile = id % ${rowTiles * columnTiles}u;
  // Rows of tiles that are worked on together, column by column, read what stays in the cache.
  let topTile = tile / ${perGroup}u * ${rowsTogether}u;
  let tilesDown = min(${rowTiles}u - topTile, ${rowsTogether}u);
  let firstRow = (topTile + tile % ${perGroup}u % tilesDown) * ${rows}u;
  let firstColumn = tile % ${perGroup}u / tilesDown * ${columns}u;
  let part = id / ${columnTiles * rowTiles}u; // counts parts of the depth of one product after the other
  let z = part / ${splits}u;
  let begin = part % ${splits}u * ${partDepth}u;
  let end = ${end};
  ${lanes}
  ${upTo(blockRows).flatMap((i) => columnQuads.map((q) => `var s${i}_${q} = vec4f();`)).join(" ")}
${loop}
  ${upTo(blockRows / 4).map(finish).join("\n  ")}
}
`;
  const product: Pass = { code, workgroups, operands: places };
  return split ? [product, sumOfParts(shape, splits, operands, traits)] : [product];
}

/** `vec4f`s of a line of a tile: one more than it holds, or the stores of neighbours along the depth meet in one bank. */
export const lineOf = (outer: number) => outer / 4 + 1;

/** Text that multiplies a tile: adds to the sums `s0_0` and so on by row and four columns. */
export function multiply({ rows, columns, blockRows, blockColumns, depth }: Tile) {
  const down = rows / blockRows, across = columns / blockColumns;
  const rowQuads = upTo(blockRows / 4), columnQuads = upTo(blockColumns / 4);
  const step = (p: number) => `
    { ${rowQuads.map((r) => `let a${r} = tileA[${p}][ty + ${r * down}u];`).join(" ")} ${
    columnQuads.map((q) => `let b${q} = tileB[${p}][tx + ${q * across}u];`).join(" ")
  }
${
    upTo(blockRows).flatMap((i) =>
      columnQuads.map((q) => `      s${i}_${q} = fma(vec4f(a${i >> 2}[${i & 3}]), b${q}, s${i}_${q});`)
    ).join("\n")
  } }`;
  return { begin: "", tile: upTo(depth).map(step).join(""), end: "" };
}

/** Text that brings one tile into workgroup memory, by way of registers. */
export function stage(
  side: "A" | "B",
  { contiguous }: Pick<Panel, "contiguous">,
  outer: number,
  { depth }: Pick<Tile, "depth">,
  threads: number,
  first: string,
) {
  const quads = outer * depth / 4, rounds = Math.ceil(quads / threads);
  const alongDepth = contiguous === "depth";
  const guard = (round: number, text: string) =>
    (round + 1) * threads <= quads ? `{ ${text} }` : `if (local < ${quads - round * threads}u) { ${text} }`;
  const index = (round: number) => `let quad = ${round * threads}u + local;`;
  // Lanes that store what is eight terms apart would meet in the same banks: they take other lines.
  const perLine = depth / 4, apart = 32 / perLine;
  const line = perLine < 4 || outer % 16 !== 0
    ? `quad / ${perLine}u`
    : `((quad / ${perLine}u) ^ (quad % ${perLine}u / 2u * ${apart}u))`;
  return {
    declare: upTo(rounds).map((round) => `var next${side}${round} = vec4f();`).join(" "),
    load: (k0: string) =>
      upTo(rounds).map((round) =>
        guard(
          round,
          alongDepth
            ? `${index(round)} next${side}${round} = load${side}(${first} + ${line}, ${k0} + quad % ${
              depth / 4
            }u * 4u, z);`
            : `${index(round)} next${side}${round} = load${side}(${first} + quad % ${outer / 4}u * 4u, ${k0} + quad / ${
              outer / 4
            }u, z);`,
        )
      ).join("\n    "),
    store: upTo(rounds).map((round) =>
      guard(
        round,
        alongDepth
          ? `${index(round)} let line = ${line}; let p = quad % ${depth / 4}u * 4u; ${
            upTo(4).map((j) => `tile${side}[p + ${j}u][line / 4u][line % 4u] = next${side}${round}[${j}];`)
              .join(" ")
          }`
          : `${index(round)} tile${side}[quad / ${outer / 4}u][quad % ${outer / 4}u] = next${side}${round};`,
      )
    ).join("\n    "),
  };
}

/** Adds the parts of the depth, in order, and finishes as a whole product would. */
export function sumOfParts(
  shape: MatmulShape,
  splits: number,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass {
  const { m, n, batch } = shape;
  const width = n % 4 === 0 ? 4 : 1;
  const each = m * n / width, total = each * batch;
  const workgroups = spread(Math.ceil(total / 64));
  const places = placesOf(operands, ["partial", ...epilogueNames(shape)]);
  const column = `i % ${n / width}u`;
  const { directives, bindings, load, store, add } = storage(
    traits,
    places.map((place) => operands[place]),
    elementTypes(shape),
  );
  const terms = [
    "sum",
    ...(shape.bias ? [load("bias", column)] : []),
    ...(shape.residual ? [load("residual", "i")] : []),
  ];
  const code = `${directives}
${bindings}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let i = (group.y * ${workgroups[0]}u + group.x) * 64u + local;
  if (i >= ${total}u) { return; }
  let first = i / ${each}u * ${each * splits}u + i % ${each}u;
  var sum = partial[first];
  ${upTo(splits - 1).map((s) => `sum += partial[first + ${(s + 1) * each}u];`).join("\n  ")}
  ${(shape.accumulate ? add : store)("c", "i", terms.join(" + "))}
}
`;
  return { code, workgroups, operands: places };
}
