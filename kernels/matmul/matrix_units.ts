/**
 * v4, for matrix units: as v2 a workgroup brings a tile of A and one of B into workgroup memory, the next one on its way
 * through registers while one is used; then subgroups multiply matrices of 16 x 16 of them, `f16` with sums in `f32`.
 * Tiles lie as the operands do in memory, whatever is transposed: loading a matrix turns it where need be.
 *
 * What limits it is reading matrices from workgroup memory, so a subgroup's part of C is as large as registers allow. It
 * has one buffer: with two, workgroups of an NVIDIA GPU need so much memory that only one fits a processor.
 *
 * Operands that are `f16` go as they are. Others are multiplied by a power of two that brings the operand's largest
 * element near the largest `f16` (a pass before finds it), so that small gradients do not vanish. With `parts` of 2 each
 * element is the sum of two `f16`, the second being what the first leaves, and three of the four products are summed:
 * nearly the precision of `f32` (Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor Cores while
 * surpassing the FP32 theoretical peak performance"; there the second part is scaled by 2^11, which the scale of the
 * whole operand makes needless). Matrix units cut off what a sum cannot hold instead of rounding it, an error that grows
 * with the depth; so sums of such products leave the units every `chunk` terms and are added up in `f32` proper.
 */
import { type DeviceTraits, type ElementType, type Operand, type Pass, spread } from "../kernel.ts";
import { matrixLanes, type MatrixPlace, matrixSize, type MatrixUnit, octet } from "../matrix_unit.ts";
import { bindings, reduction, type RowLayout } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { epilogueNames, type MatmulShape, placesOf } from "./shape.ts";
import { elementTypes, finisher, type Panel, panelsOf, reader, upTo } from "./text.ts";
import { sumOfParts } from "./workgroup_tiles.ts";

export interface MatrixTiling {
  /** Rows and columns of a workgroup's part of C, and of a subgroup's: multiples of 16. */
  readonly rows: number;
  readonly columns: number;
  readonly subgroupRows: number;
  readonly subgroupColumns: number;
  /** Terms that a tile holds: a multiple of 16. */
  readonly depth: number;
  /** `f16` numbers that an element is the sum of, where it is not `f16` itself. */
  readonly parts: 1 | 2;
  /** Terms after which sums leave the matrix units, where `parts` is 2: a multiple of `depth`. */
  readonly chunk: number;
  /** Parts of the depth, each a multiple of `depth` but for the last. */
  readonly splits: number;
  readonly partDepth: number;
  /** Rows of tiles that are worked on together, so that what they read stays in the cache. */
  readonly together: number;
}

/** Groups that are at work at once on a large device: two on each of an H200's processors. */
const evenGroups = 264;

type Tile = Pick<MatrixTiling, "rows" | "columns" | "subgroupRows" | "subgroupColumns">;
const square: Tile = { rows: 128, columns: 128, subgroupRows: 64, subgroupColumns: 64 };
const narrow: Tile = { rows: 128, columns: 96, subgroupRows: 64, subgroupColumns: 48 };
const tall: Tile = { rows: 160, columns: 128, subgroupRows: 80, subgroupColumns: 64 };
/** As much as the registers of a subgroup hold, and workgroup memory where one of the tiles at least has long lines. */
const tallest: Tile = { rows: 192, columns: 128, subgroupRows: 96, subgroupColumns: 64 };

/** All of them, for tuners. */
export const matrixTiles: readonly Tile[] = [
  square,
  narrow,
  tall,
  tallest,
  { rows: 128, columns: 64, subgroupRows: 64, subgroupColumns: 32 },
  { rows: 64, columns: 64, subgroupRows: 32, subgroupColumns: 32 },
];

/** What `f16` reaches where C is large, TFLOP/s of an H200, by transposes. */
const rates = {
  nn: [[tallest, 284], [tall, 268], [square, 245], [narrow, 195]],
  nt: [[tall, 255], [square, 229], [narrow, 195]],
  tn: [[tall, 274], [square, 254], [narrow, 195]],
  tt: [[square, 229], [narrow, 195]],
} as const;

/**
 * The tile that is done first: each round of groups takes as long as its part of C is large, and as slow as the tile is.
 *
 * @param mostSplits parts for whose sums there is scratch
 */
export function matrixTilingOf(shape: MatmulShape, parts: 1 | 2, mostSplits: number): MatrixTiling {
  const { m, n, batch, transposeA, transposeB, types } = shape;
  if (types.a !== "f16") return matrixTiling(shape, square, parts, mostSplits);
  const [best] = rates[`${transposeA ? "t" : "n"}${transposeB ? "t" : "n"}`].map(([tile, rate]) => {
    const tiling = matrixTiling(shape, tile, parts, mostSplits);
    const groups = Math.ceil(m / tile.rows) * Math.ceil(n / tile.columns) * batch * tiling.splits;
    return { tiling, time: Math.ceil(groups / evenGroups) * tile.rows * tile.columns * tiling.partDepth / rate };
  }).sort((a, b) => a.time - b.time);
  return best.tiling;
}

/** A tile, the depth in so many parts that a large device is busy. */
export function matrixTiling(
  { m, n, k, batch }: MatmulShape,
  tile: Tile,
  parts: 1 | 2,
  mostSplits: number,
): MatrixTiling {
  const depth = parts === 1 ? 32 : 16;
  const groups = Math.ceil(m / tile.rows) * Math.ceil(n / tile.columns) * batch;
  const wanted = Math.max(1, Math.min(mostSplits, Math.floor(evenGroups / groups)));
  const partDepth = Math.ceil(k / wanted / depth) * depth;
  return { ...tile, depth, parts, chunk: 256, together: 16, splits: Math.ceil(k / partDepth), partDepth };
}

export function matrixUnitPasses(
  shape: MatmulShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  tiling: MatrixTiling,
): Pass[] {
  const { rows, columns, subgroupRows, subgroupColumns, depth, splits, partDepth } = tiling;
  const { m, n, k, batch } = shape;
  const split = splits > 1;
  const across = columns / subgroupColumns, down = rows / subgroupRows;
  const threads = across * down * matrixLanes;
  const rowTiles = Math.ceil(m / rows), columnTiles = Math.ceil(n / columns);
  const total = rowTiles * columnTiles * batch * splits;
  const workgroups = spread(total);
  const guarded = k % depth !== 0;
  const panels = panelsOf(shape);
  // Whole halves go as they are; other types are scaled and converted on their way.
  const scaled = operands[0].type !== "f16";
  const parts = scaled ? tiling.parts : 1;
  const places = placesOf(operands, [
    "a",
    "b",
    ...(scaled ? ["largest"] : []),
    ...(split ? ["partial"] : epilogueNames(shape)),
  ]);
  const stored = { ...shape, accumulate: false, ...(split && { bias: false, residual: false }) };
  const adds = shape.accumulate && !split;
  const types = { a: operands[places[0]].type, b: operands[places[1]].type };
  const a = side("A", panels.a, rows, { ...tiling, parts }, types.a, threads, "firstRow", 0);
  const b = side("B", panels.b, columns, { ...tiling, parts }, types.b, threads, "firstColumn", a.words);
  const across16 = upTo(subgroupColumns / matrixSize), down16 = upTo(subgroupRows / matrixSize);
  const sums = down16.flatMap((i) => across16.map((j) => `s${i}_${j}`));

  const halves = upTo(parts);
  // Of two parts each, the product of the second ones is below the precision of the sum.
  const pairs = halves.flatMap((x) => halves.filter((y) => x + y < parts).map((y) => [x, y] as const)).reverse();
  const step = (p: number) => `
    {
      ${
    down16.flatMap((i) =>
      halves.map((x) => unit.left(`tiles_a${i}_${x}`, a.matrix(`subgroupRow + ${i * matrixSize}u`, p, x)))
    ).join("\n      ")
  }
      ${
    across16.map((j) =>
      `{
      ${
        halves.map((y) => unit.right(`tiles_b${y}`, b.matrix(`subgroupColumn + ${j * matrixSize}u`, p, y)))
          .join("\n      ")
      }
      ${
        pairs.flatMap(([x, y]) => down16.map((i) => unit.multiplyAdd(`s${i}_${j}`, `tiles_a${i}_${x}`, `tiles_b${y}`)))
          .join("\n      ")
      }
      }`
    ).join("\n      ")
  }
    }`;
  const load = (k0: string) => `{ let next = min(${k0}, stop - ${depth}u); ${a.load("next")} ${b.load("next")} }`;
  const loop = `
  ${load("start")}
  for (var k0 = start; k0 < stop; k0 += ${depth}u) {
    ${a.store} ${b.store}
    workgroupBarrier();
    ${load(`k0 + ${depth}u`)} // the last one is brought twice
    ${upTo(depth / matrixSize).map((p) => step(p * matrixSize)).join("")}
    workgroupBarrier();
  }`;

  // Sums leave by way of workgroup memory, sixteen rows of each subgroup at a time, so that any epilogue and any edge can
  // be seen to by row and column.
  const line = subgroupColumns / 4 + 1, quads = subgroupColumns / 4;
  const finish = (whatever: (place: string) => string) =>
    down16.map((i) => `
  ${
      across16.map((j) => unit.store(`s${i}_${j}`, "tiles", `subgroup * ${matrixSize * line}u + ${j * 4}u`, line))
        .join("\n  ")
    }
  workgroupBarrier();
  for (var i = lane; i < ${matrixSize * quads}u; i += ${matrixLanes}u) {
    let sum = bitcast<vec4f>(tiles[subgroup * ${matrixSize * line}u + i / ${quads}u * ${line}u + i % ${quads}u])${
      scaled ? " * unscaleA * unscaleB" : ""
    };
    let row = firstRow + subgroupRow + ${i * matrixSize}u + i / ${quads}u;
    let column = firstColumn + subgroupColumn + i % ${quads}u * 4u;
    ${whatever(`row, column, ${split ? "part" : "z"}`)}
  }
  workgroupBarrier();`).join("");
  const finishOnce = (place: string) => `finish(${place}, sum${adds ? ` + before(${place})` : ""});`;

  const chunked = parts === 2 && k > tiling.chunk;
  const body = chunked
    ? `
  for (var start = begin; start < end; start += ${tiling.chunk}u) {
  let stop = min(start + ${tiling.chunk}u, end);
${loop}
${
      finish((place) =>
        `if (start == begin) { ${finishOnce(place)} } else { finishMore(${place}, sum + before(${place})); }`
      )
    }
  ${sums.map((sum) => unit.clear(sum)).join(" ")}
  }`
    : `
  let start = begin;
  let stop = end;
${loop}
${finish(finishOnce)}`;

  // Tiles are told apart by a and b as their words are; the rest by what they store.
  const target = split ? "partial" : "c";
  const texts = storage(
    traits,
    places.map((place) => readOnly(asWords(operands[place], panels))),
    { ...elementTypes(shape), a: a.element, b: b.element, largest: "vec4u" },
  );
  const finishing = finisher(stored, { rows, columns }, texts, target);
  const more = { ...stored, accumulate: false, bias: false, residual: false };
  const reading = reader(shape, texts, target);
  const rowsTogether = Math.min(tiling.together, rowTiles), perGroup = rowsTogether * columnTiles;
  const code = `${unit.directives}${texts.directives}
${texts.bindings}
var<workgroup> tiles: array<vec4u, ${Math.max(a.words + b.words, across * down * matrixSize * line)}>;
${unit.declarations(["tiles"])}
${scaled ? scaleText : ""}
${a.declarations}
${b.declarations}
${a.loader(guarded)}
${b.loader(guarded)}
${adds || chunked ? reading : ""}
${finishing}
${chunked ? finisher(more, { rows, columns }, texts, target).replace("fn finish(", "fn finishMore(") : ""}

@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  ${workgroups[1] > 1 ? `if (id >= ${total}u) { return; }` : ""}
  let tile = id % ${rowTiles * columnTiles}u;
  let part = id / ${rowTiles * columnTiles}u; // counts parts of the depth of one product after the other
  // A few rows of tiles together, column by column.
  let topTile = tile / ${perGroup}u * ${rowsTogether}u;
  let tilesDown = min(${rowTiles}u - topTile, ${rowsTogether}u);
  let firstRow = (topTile + tile % ${perGroup}u % tilesDown) * ${rows}u;
  let firstColumn = tile % ${perGroup}u / tilesDown * ${columns}u;
  let z = part / ${splits}u;
  let begin = part % ${splits}u * ${partDepth}u;
  let end = min(begin + ${partDepth}u, ${Math.ceil(k / depth) * depth}u);
  let subgroup = local / ${matrixLanes}u;
  let lane = local % ${matrixLanes}u;
  let subgroupRow = subgroup / ${across}u * ${subgroupRows}u;
  let subgroupColumn = subgroup % ${across}u * ${subgroupColumns}u;
  ${scaled ? ["A", "B"].map((name, i) => scales(name, unit.largest("largest", 64 * i))).join("\n  ") : ""}
  ${a.declare} ${b.declare}
  ${sums.map((sum) => unit.sum(sum)).join("\n  ")}
${body}
}
`;
  return [
    ...(scaled ? [largestPass(operands)] : []),
    { code, workgroups, operands: places },
    ...(split ? [sumOfParts(shape, splits, operands, traits)] : []),
  ];
}

/** Operands of a product as the text declares them: words, but for `f16` that do not fill any. */
function asWords(operand: Operand, { a, b }: Record<"a" | "b", Panel>): Operand {
  const panel = operand.name === "a" ? a : operand.name === "b" ? b : undefined;
  if (panel === undefined || operand.type === "f32" || operand.type === "f16" && !wholeOctets(panel)) return operand;
  return { ...operand, type: "u32" };
}

/** Scratch that a later pass only reads. */
const readOnly = (operand: Operand): Operand => operand.name === "largest" ? { ...operand, access: "read" } : operand;

const largestWords = 512;

/** Scratch for bits of the largest magnitude that each of 256 groups found in a, then in b. */
export const largestOperand: Operand = { name: "largest", type: "u32", length: largestWords, access: "scratch" };

/** Bits of magnitudes order as the magnitudes do, with what is no number on top. */
function largestPass(operands: readonly Operand[]): Pass {
  const places = placesOf(operands, ["a", "b", "largest"]);
  const sides = [0, 1].map((i) => {
    const { name, type, length } = operands[places[i]];
    const words = length * (type === "f32" ? 1 : 0.5), vectors = Number.isInteger(words / 4);
    const magnitude = (word: string) =>
      type === "f32"
        ? `${word} & MASK(0x7fffffffu)`
        : `max((${word} & MASK(0x7fffu)) << SHIFT(16u), ${word} & MASK(0x7fff0000u))`;
    const text = vectors
      ? magnitude("word").replaceAll("MASK", "vec4u").replaceAll("SHIFT", "vec4u")
      : magnitude("word").replaceAll("MASK", "").replaceAll("SHIFT", "");
    const count = vectors ? words / 4 : Math.floor(words);
    const rest = Number.isInteger(words)
      ? ""
      : `if (lane == 0u) { most = max(most, (${name}[${count}] & 0x7fffu) << 16u); }`;
    return {
      element: vectors ? "vec4u" : "u32",
      text: `for (var i = first; i < ${count}u; i += 65536u) {
      let word = ${name}[i];
      most = max(most, ${vectors ? `mostOf(${text})` : text});
    }
    ${rest}`,
    };
  });
  const code = `
${
    bindings(places.map((place) => operands[place]), {
      a: sides[0].element,
      b: sides[1].element,
      largest: "u32",
    })
  }
fn mostOf(v: vec4u) -> u32 { return max(max(v.x, v.y), max(v.z, v.w)); }
${reduction({ lanes: 256 } as RowLayout, { name: "merge", type: "u32", merge: "max(a, b)" })}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let first = group.x % 256u * 256u + lane;
  var most = 0u;
  if (group.x < 256u) {
    ${sides[0].text}
  } else {
    ${sides[1].text}
  }
  let merged = merge(most, lane);
  if (lane == 0u) { largest[group.x] = merged; }
}
`;
  return { code, workgroups: [largestWords, 1, 1], operands: places };
}

const scaleText = `
fn mostOf(v: vec4u) -> u32 { return max(max(v.x, v.y), max(v.z, v.w)); }
struct Eight { first: vec4f, last: vec4f }
fn pair(v: vec4f) -> vec2u { return vec2u(pack2x16float(v.xy), pack2x16float(v.zw)); }
fn packed(v: Eight) -> vec4u { return vec4u(pair(v.first), pair(v.last)); }
// To nearest in the ten bits that an f16 has, by bits: a conversion there and back is taken for nothing by compilers.
fn near(v: vec4f) -> vec4f {
  return bitcast<vec4f>((bitcast<vec4u>(v) + vec4u(0x1000u)) & vec4u(0xffffe000u));
}`;

/** The power of two that brings an operand's largest magnitude to 2^14…2^15, and what undoes it. */
const scales = (name: string, largest: string) =>
  `let exponent${name} = clamp(268u - (${largest} >> 23u), 1u, 253u);
  let scale${name} = bitcast<f32>(exponent${name} << 23u);
  let unscale${name} = bitcast<f32>((254u - exponent${name}) << 23u);`;

/** Text that brings one operand's tiles into workgroup memory, by way of registers, and finds matrices in them. */
function side(
  name: "A" | "B",
  panel: Panel,
  outer: number,
  { depth, parts }: MatrixTiling,
  type: ElementType,
  threads: number,
  first: string,
  begin: number,
) {
  const alongDepth = panel.contiguous === "depth";
  const lines = alongDepth ? outer : depth, octets = (alongDepth ? depth : outer) / octet;
  // One word more than it holds keeps neighbouring lines in different banks.
  const stride = octets + 1, words = parts * lines * stride;
  const ordered = lineOrder(octets, lines, threads);
  const count = lines * octets, rounds = upTo(Math.ceil(count / threads));
  // Where tiles fill the operand, a place in it is a sum of what an invocation computes once and constants.
  const whole = wholeOctets(panel) && panel.outer % outer === 0 && panel.k % depth === 0 && threads % octets === 0;
  const width = (alongDepth ? panel.k : panel.outer) / octet, apart = threads / octets;
  // Rounds are whole lines apart.
  const inLines = threads % octets === 0;
  const start = alongDepth
    ? `(z * ${panel.outer}u + ${first} + line${name}) * ${width}u + local % ${octets}u`
    : `(z * ${panel.k}u + line${name}) * ${width}u + ${first} / 8u + local % ${octets}u`;
  const guard = (round: number, text: string) =>
    (round + 1) * threads <= count ? `{ ${text} }` : `if (local < ${count - round * threads}u) { ${text} }`;
  const place = (round: number) =>
    inLines
      ? `let line = line${name} + ${round * apart}u; let word = local % ${octets}u;`
      : `let i = ${round * threads}u + local; let line = i / ${octets}u; let word = i % ${octets}u;`;
  const fetch = (round: number, k0: string) => {
    if (!whole) {
      return `${place(round)} next${name}${round} = load${name}(${
        alongDepth ? `${first} + line, ${k0} + word * 8u` : `${first} + word * 8u, ${k0} + line`
      }, z);`;
    }
    const at = `at${name} + ${alongDepth ? `${k0} / 8u` : `${k0} * ${width}u`} + ${round * apart * width}u`;
    if (type !== "f32") return `next${name}${round} = ${panel.name}[${at}];`;
    return `let i = ${at}; next${name}${round} = Eight(${panel.name}[2u * i], ${panel.name}[2u * i + 1u]);`;
  };
  return {
    words,
    element: wholeOctets(panel) ? type === "f32" ? "vec4f" : "vec4u" : type === "bf16" ? "u32" : type,
    declarations: `alias Raw${name} = ${type === "f32" ? "Eight" : "vec4u"};`,
    loader: (guarded: boolean) => whole ? "" : loader(name, panel, guarded, type),
    declare: [
      ...rounds.map((round) => `var next${name}${round} = Raw${name}();`),
      `let line${name} = ${ordered};`,
      `let put${name} = line${name} * ${stride}u + local % ${octets}u;`,
      ...(whole ? [`let at${name} = ${start};`] : []),
    ].join(" "),
    load: (k0: string) => rounds.map((round) => guard(round, fetch(round, k0))).join("\n    "),
    store: rounds.map((round) => {
      const at = inLines ? `put${name} + ${begin + round * apart * stride}u` : `${begin}u + line * ${stride}u + word`;
      return guard(
        round,
        `${inLines ? "" : place(round)} ${
          type === "f16"
            ? `tiles[${at}] = next${name}${round};`
            : convert(name, `next${name}${round}`, type, at, parts, lines * stride)
        }`,
      );
    }).join("\n    "),
    /** The matrix from an outer place (an expression) and a term on. */
    matrix: (outer: string, p: number, part: number): MatrixPlace => ({
      tile: "tiles",
      offset: `${begin + part * lines * stride + (alongDepth ? p / octet : p * stride)}u + ` +
        (alongDepth ? `(${outer}) * ${stride}u` : `(${outer}) / 8u`),
      stride,
      alongDepth,
    }),
  };
}

/**
 * The line of a tile that an invocation brings in first. Eight neighbouring lanes store at once, and to eight different
 * banks: where a line has fewer words than that, they take lines that do not meet, out of eight that follow each other.
 */
function lineOrder(octets: number, lines: number, threads: number): string {
  const line = `local / ${octets}u`;
  if (octets > 4 || lines % 8 !== 0 || threads % (8 * octets) !== 0) return line;
  const neighbours = 8 / octets;
  return `${line} / 8u * 8u + ${line} % ${neighbours}u * ${octets}u + ${line} / ${neighbours}u % ${octets}u`;
}

/** Statements that scale eight elements and store them as `f16`, and with two parts what that leaves of them. */
function convert(name: string, raw: string, type: ElementType, place: string, parts: number, apart: number): string {
  const eight = type === "f32"
    ? raw
    : `Eight(bitcast<vec4f>(vec4u(${raw}.x << 16u, ${raw}.x & 0xffff0000u, ${raw}.y << 16u, ${raw}.y & 0xffff0000u)), ` +
      `bitcast<vec4f>(vec4u(${raw}.z << 16u, ${raw}.z & 0xffff0000u, ${raw}.w << 16u, ${raw}.w & 0xffff0000u)))`;
  const scaledText = `let wide = ${eight}; let all = Eight(wide.first * scale${name}, wide.last * scale${name}); ` +
    `let at = ${place};`;
  if (parts === 1) return `${scaledText} tiles[at] = packed(all);`;
  return `${scaledText} let head = Eight(near(all.first), near(all.last)); tiles[at] = packed(head); ` +
    `tiles[at + ${apart}u] = packed(Eight(all.first - head.first, all.last - head.last));`;
}

const wholeOctets = ({ contiguous, outer, k }: Panel) => (contiguous === "depth" ? k : outer) % octet === 0;

/**
 * A function `loadA(outer, depth, z) -> RawA`: eight elements from there along the contiguous dimension. Past the outer
 * edge it reads what is inside (such sums are never stored); past `k`, where `guarded`, it gives zeros.
 */
function loader(name: "A" | "B", panel: Panel, guarded: boolean, type: ElementType): string {
  const { outer, k, contiguous } = panel;
  const alongDepth = contiguous === "depth";
  const width = alongDepth ? k : outer, lines = alongDepth ? outer : k;
  const inside = (expression: string, count: number) => `min(${expression}, ${count - 1}u)`;
  const line = inside(alongDepth ? "outer" : "depth", lines), along = alongDepth ? "depth" : "outer";
  const open = `fn load${name}(outer: u32, depth: u32, z: u32) -> Raw${name} {
  ${guarded ? `if (depth >= ${k}u) { return Raw${name}(); }` : ""}`;
  if (wholeOctets(panel)) {
    const word = `(z * ${lines}u + ${line}) * ${width / octet}u + ${inside(`${along} / 8u`, width / octet)}`;
    return `${open}
  let word = ${word};
  return ${type === "f32" ? `Eight(${panel.name}[2u * word], ${panel.name}[2u * word + 1u])` : `${panel.name}[word]`};
}`;
  }
  const element = (i: number) => {
    const at = `base + ${inside(`${along} + ${i}u`, width)}`;
    const value = type === "f32"
      ? `${panel.name}[${at}]`
      : type === "f16"
      ? `f32(${panel.name}[${at}])`
      : `(${panel.name}[(${at}) / 2u] >> (16u * ((${at}) % 2u))) & 0xffffu`;
    const zero = type === "bf16" ? "0u" : "0f";
    return guarded && alongDepth ? `select(${zero}, ${value}, depth + ${i}u < ${k}u)` : value;
  };
  const quad = (first: number) => `vec4f(${upTo(4).map((i) => element(first + i)).join(", ")})`;
  const pair = (i: number) =>
    type === "bf16"
      ? `(${element(i)}) | ((${element(i + 1)}) << 16u)`
      : `pack2x16float(vec2f(${element(i)}, ${element(i + 1)}))`;
  return `${open}
  let base = (z * ${lines}u + ${line}) * ${width}u;
  return ${type === "f32" ? `Eight(${quad(0)}, ${quad(4)})` : `vec4u(${[0, 2, 4, 6].map(pair).join(", ")})`};
}`;
}
