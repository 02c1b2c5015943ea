/**
 * Flash attention on matrix units, `f16` with sums and softmax in `f32`: the same passes as `flash.ts`. Each subgroup of a
 * workgroup has rows of its own, in the units' registers; columns pass by in blocks that all of them read. `bf16` is
 * converted on its way (`scales.ts`).
 *
 * Products of rows and columns leave the units for workgroup memory, since that alone shows which lane has what. There a
 * lane owns a query's line (or half of it): it masks and exponentiates what stands there and puts the weights in its place
 * as `f16`, or beside it in the forward pass, for the products that sum columns up. The pass for dK and dV makes the same lines of queries, and turns
 * the weights when it loads them, so that log-sum-exp and mask are a lane's own everywhere. Only lines that the diagonal
 * or a segment's edge crosses are masked.
 *
 * Sums in the units cannot be scaled row by row. So the forward pass measures a row's scores by the largest of the first
 * block that the row sees: later ones may be 2^15 times as heavy before `f16` cannot hold their weights. Where some are, the
 * workgroup goes over its columns once more, and knows each row's largest score then.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { matrixLanes, type MatrixPlace, matrixSize, type MatrixUnit, octet } from "../matrix_unit.ts";
import { float } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { keptWord, matrixKeptPass, type MatrixSums, pairWords } from "./matrix_kept.ts";
import { pairsText, roundPasses, type Rounds, unlessByPairs } from "./rounds.ts";
import { gradientScale, halvesText, isScaled, scalesText } from "./scales.ts";
import type { AttentionShape } from "./shape.ts";

const log2e = Math.LOG2E;

/** How a pass is divided. */
export interface MatrixBlocks {
  /** Subgroups of a workgroup. */
  readonly subgroups: number;
  /** Rows of a subgroup: 16 or 32. They stay, while columns pass by. */
  readonly rows: number;
  /** Columns of a step: 32, or 16, in the backward passes with 32 rows. */
  readonly columns: number;
  /** What a step reads from memory is asked for a whole step before. */
  readonly early?: boolean;
  /**
   * Scores are made as columns times rows and stored column by column, so that no two lanes meet in a bank of workgroup
   * memory: more stores, of one turn each.
   */
  readonly crosswise?: boolean;
}

export interface MatrixTiling {
  readonly forward: MatrixBlocks;
  readonly queryGradient: MatrixBlocks;
  readonly keyGradient: MatrixBlocks;
  /** The product that makes dQ of what the pass for dK and dV keeps: in place of a pass of its own. */
  readonly kept?: MatrixSums;
}

/** The name of the division whose backward pass makes gradients of scores once. */
export const keptForm = "units, gradients kept";

/**
 * Divisions by name, the one that ships first: the quickest on an H200 of those that were tried. The last one has more
 * workgroups, for few tokens.
 */
export function matrixTilings({ headDim }: AttentionShape): Readonly<Record<string, MatrixTiling>> {
  const large = { subgroups: 4, rows: 32, columns: 32 }, small = { subgroups: 4, rows: 16, columns: 32 };
  const units: MatrixTiling = headDim <= 64
    ? {
      forward: { ...large, columns: 16, crosswise: true, early: true },
      queryGradient: { ...large, early: true },
      keyGradient: { ...large, columns: 16, early: true, crosswise: true },
    }
    : {
      forward: { ...small, columns: 16, crosswise: true },
      queryGradient: { ...small, subgroups: 6, early: true },
      keyGradient: small,
    };
  return {
    [keptForm]: { ...units, kept: { subgroups: 4, rows: 16, depth: 32 } },
    units,
    "units, small groups": { forward: large, queryGradient: small, keyGradient: small },
  };
}

/** @throws {RangeError} for blocks that a pass cannot have */
function requireBlocks({ subgroups, rows, columns }: MatrixBlocks, { beside }: PassNames): void {
  const sizes = `blocks of ${rows} rows and ${columns} columns in ${subgroups} subgroups`;
  if (!(Number.isInteger(subgroups) && subgroups > 0 && [16, 32].includes(rows) && [16, 32].includes(columns))) {
    throw new RangeError(`Cannot divide attention into ${sizes}: rows and columns must be 16 or 32`);
  }
  // Two lanes to a line have eight keys each, which is half of what a matrix of weights is read by: in place of their
  // scores, words of both would not lie side by side.
  if (rows === 16 && columns === 16 && !beside) {
    throw new RangeError(`Cannot divide attention into ${sizes}: 16 rows need 32 columns, 16 columns need 32 rows`);
  }
}

/** Whether this form can do a shape. Scores are compared before they are scaled. */
export const fitsMatrixBlocks = ({ type, headDim, scale }: AttentionShape): boolean =>
  type !== "f32" && headDim % matrixSize === 0 && headDim <= 128 && scale > 0;

interface PassNames {
  /** Operands of which a block of rows is held, in `f16`, those that pass by as columns, and what is written. */
  readonly rows: readonly string[];
  readonly columns: readonly string[];
  readonly others: readonly string[];
  readonly outputs: readonly string[];
  /** Products of rows and columns that are alive together. */
  readonly scores: number;
  /** Rows are keys: lines of scores are the columns'. */
  readonly turned?: boolean;
  /** Weights have a place of their own beside their line's scores. */
  readonly beside?: boolean;
}

/** q, k, v, start → o, logSumExp. */
export function matrixForwardPass(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  form: MatrixBlocks,
): Pass {
  const { tokens, heads, kvHeads } = shape, { columns } = form;
  const text = textOf(shape, operands, traits, unit, form, {
    rows: ["q"],
    columns: ["k", "v"],
    others: ["start"],
    outputs: ["o", "logSumExp"],
    scores: 1,
    beside: true,
  });
  const own = upTo(text.quads), sums = text.sums("o");
  const bring = (firstColumn: string) =>
    `${text.bring("k", `${firstColumn} + ${columns}u`, "kvHead")} ${text.bring("v", firstColumn, "kvHead")}`;
  // Weights of a step and scores of the next one stand beside each other, so that no barrier parts the products.
  const code = `
${text.head}
var<workgroup> outgrown: u32;
${text.open(heads)}
  let kvHead = head / ${heads / kvHeads}u;
  let firstRow = (${text.blocks - 1}u - block) * ${text.rows}u; // the longest first
  let ownRow = firstRow + subgroup * ${form.rows}u;
  let row = ownRow + ${text.ownLine};
  let begin = start[min(row, ${tokens - 1}u)];
  ${text.holdRows({ q: "head" })}
  var largest = -1e20f; var reached = -1e20f; var total = 0f;
  ${sums.map((sum) => unit.sum(sum)).join(" ")}
  let finish = min(firstRow + ${text.rows}u, ${tokens}u);
  let first = start[firstRow];
  ${text.declareNext}
  for (var run = 0u; run < 2u; run++) {
  { ${text.bring("k", "first", "kvHead")} ${text.stage("k")} }
  ${text.early(bring("first"))}
  workgroupBarrier();
  { ${text.product("q", "k", 0)} }
  workgroupBarrier();
  for (var firstColumn = first; firstColumn < finish; firstColumn += ${columns}u) {
    ${text.late(bring("firstColumn"))}
    {
      ${own.map((q) => `var s${q} = ${text.score(0, q)};`).join("\n      ")}
      if (begin > firstColumn || row < firstColumn + ${columns - 1}u) {
        ${
    own.map((q) =>
      `{ let column = ${text.column(q)}; ` +
      `s${q} = select(vec4f(-1e30f), s${q}, (column >= vec4u(begin)) & (column <= vec4u(row))); }`
    ).join("\n        ")
  }
      }
      let most = ${own.map((q) => `s${q}`).reduce((a, b) => `max(${a}, ${b})`)};
      ${
    text.together("top", `max(max(most.x, most.y), max(most.z, most.w)) * ${text.scoreFactor}`, (a, b) =>
      `max(${a}, ${b})`)
  }
      largest = select(largest, top, largest < -1e19f && top > -1e19f);
      reached = max(reached, top);
      ${own.map((q) => `s${q} = exp2(fma(s${q}, vec4f(${text.scoreFactor}), vec4f(-largest)));`).join("\n      ")}
      let all = ${own.map((q) => `s${q}`).join(" + ")};
      total += (all.x + all.y) + (all.z + all.w);
      ${text.weights(0, "s")}
    }
    ${text.stage("k")}
    ${text.stage("v")}
    workgroupBarrier();
    ${text.early(bring(`firstColumn + ${columns}u`))}
    { ${inTurns(text.productParts("q", "k", 0), text.sumParts("o", 0, "v"))} }
    workgroupBarrier();
  }
  if (reached > largest + 15f) { outgrown = 1u; }
  if (workgroupUniformLoad(&outgrown) == 0u || run == 1u) { break; }
  largest = reached;
  total = 0f;
  ${sums.map((sum) => unit.clear(sum)).join(" ")}
  }
  ${text.together("everything", "total", (a, b) => `${a} + ${b}`)}
  ${text.finish("o", "o", "head", `1f / everything${text.unscaled("v")}`)}
  if (row < ${tokens}u${text.sharers === 1 ? "" : ` && lane % ${text.sharers}u == 0u`}) {
    logSumExp[row * ${heads}u + head] = (largest + log2(everything)) * ${float(Math.LN2)};
  }
}
`;
  return { code, workgroups: text.groups(heads), operands: text.places };
}

/**
 * Passes of the backward by which gradients of scores are made once: q, k, v, dO, rowData, start, end → dQ, dK, dV. What
 * has too many pairs of blocks is done as {@linkcode matrixBackwardPasses} does it.
 */
export function matrixKeptPasses(
  rounds: Rounds,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  { queryGradient, keyGradient, kept }: MatrixTiling & Required<Pick<MatrixTiling, "kept">>,
): Pass[] {
  return [
    ...roundPasses(rounds, operands, traits, [
      matrixKeyGradientPass(shape, operands, traits, unit, keyGradient, rounds),
      matrixKeptPass(kept, rounds, shape, operands, traits, unit),
    ]),
    matrixQueryGradientPass(shape, operands, traits, unit, queryGradient, true),
    matrixKeyGradientPass(shape, operands, traits, unit, keyGradient, undefined, true),
  ];
}

/** q, k, v, dO, rowData → dQ, dK, dV. */
export function matrixBackwardPasses(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  { queryGradient, keyGradient }: Pick<MatrixTiling, "queryGradient" | "keyGradient">,
): Pass[] {
  return [
    matrixQueryGradientPass(shape, operands, traits, unit, queryGradient),
    matrixKeyGradientPass(shape, operands, traits, unit, keyGradient),
  ];
}

/**
 * q, k, v, dO, rowData → dQ.
 *
 * @param otherwise reads `pairs` too, and does nothing where passes by pairs do it
 */
function matrixQueryGradientPass(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  form: MatrixBlocks,
  otherwise = false,
): Pass {
  const { tokens, heads, kvHeads } = shape, { columns } = form;
  const text = textOf(shape, operands, traits, unit, form, {
    rows: ["q", "dO"],
    columns: ["k", "v"],
    others: otherwise ? ["rowData", "pairs"] : ["rowData"],
    outputs: ["dQ"],
    scores: 2,
  });
  const bring = (firstColumn: string) =>
    `${text.bring("k", firstColumn, "kvHead")} ${text.bring("v", firstColumn, "kvHead")}`;
  const code = `
${text.head}
${text.open(heads)}
  ${otherwise ? unlessByPairs : ""}
  let kvHead = head / ${heads / kvHeads}u;
  let firstRow = (${text.blocks - 1}u - block) * ${text.rows}u;
  let ownRow = firstRow + subgroup * ${form.rows}u;
  let row = ownRow + ${text.ownLine};
  let data = rowData[min(row, ${tokens - 1}u) * ${heads}u + head];
  let lse = bitcast<f32>(data.x); let delta = ${text.delta};
  ${text.holdRows({ q: "head", dO: "head" })}
  ${text.sums("dQ").map((sum) => unit.sum(sum)).join(" ")}
  let finish = min(firstRow + ${text.rows}u, ${tokens}u);
  let first = rowData[firstRow * ${heads}u + head].z;
  ${text.declareNext}
  { ${bring("first")} ${text.stage("k")} ${text.stage("v")} }
  ${text.early(bring(`first + ${columns}u`))}
  workgroupBarrier();
  for (var firstColumn = first; firstColumn < finish; firstColumn += ${columns}u) {
    ${text.product("q", "k", 0)}
    ${text.product("dO", "v", 1)}
    workgroupBarrier();
    ${text.late(bring(`firstColumn + ${columns}u`))}
    {
      ${
    text.scoreGradients({
      edge: `data.z > firstColumn || row < firstColumn + ${columns - 1}u`,
      seen: (column) => `(${column} >= vec4u(data.z)) & (${column} <= vec4u(row))`,
      weights: false,
    })
  }
    }
    workgroupBarrier();
    ${text.sum("dQ", 0, "k")}
    ${text.next(["k", "v"], text.early(bring(`firstColumn + ${2 * columns}u`)))}
  }
  ${text.finish("dQ", "dQ", "head", `${text.gradientFactor}${text.unscaled("k")}`)}
}
`;
  return { code, workgroups: text.groups(heads), operands: text.places };
}

/**
 * q, k, v, dO, rowData → dK, dV: rows are keys here, columns the queries of every head of the group.
 *
 * @param rounds keeps gradients of scores in scratch (`matrix_kept.ts`), and does the heads of a round; a workgroup has the
 * rows of a block
 * @param otherwise reads `pairs` too, and does nothing where passes by pairs do it
 */
function matrixKeyGradientPass(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  form: MatrixBlocks,
  rounds?: Rounds,
  otherwise = false,
): Pass {
  const { tokens, heads, kvHeads } = shape, { columns } = form;
  const text = textOf(shape, operands, traits, unit, form, {
    rows: ["k", "v"],
    columns: ["q", "dO"],
    others: ["rowData", ...(rounds ? ["pairs", "scratch"] : otherwise ? ["pairs"] : [])],
    outputs: ["dK", "dV"],
    scores: 2,
    turned: true,
  });
  const group = heads / kvHeads;
  const dataOf = (firstColumn: string) =>
    `rowData[min(${firstColumn} + ${text.ownLine}, ${tokens - 1}u) * ${heads}u + head]`;
  const bring = (firstColumn: string) =>
    `${text.bring("q", firstColumn, "head")} ${text.bring("dO", firstColumn, "head")}`;
  const ownHeads = rounds ? rounds.heads / group : kvHeads;
  // What is kept is whole blocks, of zeros where nothing is seen.
  const wholeBlocks = rounds ? `finish = (finish + ${rounds.block - 1}u) / ${rounds.block}u * ${rounds.block}u;` : "";
  const ofRound = rounds && `
  let kvHead = firstHead() / ${group}u + headPlace;
  if (kvHead >= ${kvHeads}u) { return; }`;
  const keep = rounds && `
      let pair = slotOf(head - firstHead(), baseOf(firstColumn / ${rounds.block}u) + block) * ${pairWords(rounds)}u;
      ${text.keep((key) => `scratch[pair + ${keptWord(rounds.block, `firstColumn + ${text.ownLine}`, key)}]`, "d")}`;
  const code = `
${text.head}
${rounds ? pairsText(rounds) : ""}
${text.open(ownHeads, rounds ? "headPlace" : "kvHead")}
  ${ofRound ?? (otherwise ? unlessByPairs : "")}
  let firstRow = block * ${text.rows}u;
  let lastRow = min(firstRow + ${text.rows}u, ${tokens}u) - 1u;
  let ownRow = firstRow + subgroup * ${form.rows}u;
  ${text.holdRows({ k: "kvHead", v: "kvHead" })}
  ${[...text.sums("dK"), ...text.sums("dV")].map((sum) => unit.sum(sum)).join(" ")}
  ${text.declareNext}
  for (var head = kvHead * ${group}u; head < (kvHead + 1u) * ${group}u; head++) {
  var finish = min(rowData[lastRow * ${heads}u + head].w, ${tokens}u);
  ${wholeBlocks}
  { ${bring("firstRow")} ${text.stage("q")} ${text.stage("dO")} }
  ${text.early(bring(`firstRow + ${columns}u`))}
  var data = ${dataOf("firstRow")};
  workgroupBarrier();
  for (var firstColumn = firstRow; firstColumn < finish; firstColumn += ${columns}u) {
    ${text.product("k", "q", 0)}
    ${text.product("v", "dO", 1)}
    workgroupBarrier();
    ${text.late(bring(`firstColumn + ${columns}u`))}
    let nextData = ${dataOf(`firstColumn + ${columns}u`)};
    {
      let query = firstColumn + ${text.ownLine};
      let lse = bitcast<f32>(data.x); let delta = ${text.delta};
      ${
    text.scoreGradients(
      {
        edge: `data.z > ownRow || query < ownRow + ${form.rows - 1}u || query >= ${tokens}u`,
        seen: (key) => `(${key} >= vec4u(data.z)) & (${key} <= vec4u(query)) & vec4<bool>(query < ${tokens}u)`,
        weights: true,
      },
    )
  }
      ${keep ?? ""}
    }
    data = nextData;
    workgroupBarrier();
    ${text.sum("dV", 0, "dO")}
    ${text.sum("dK", 1, "q")}
    ${text.next(["q", "dO"], text.early(bring(`firstColumn + ${2 * columns}u`)))}
  }
  }
  ${text.finish("dK", "dK", "kvHead", `${text.gradientFactor}${text.unscaled("q")}`)}
  ${text.finish("dV", "dV", "kvHead", `1f${text.unscaled("dO")}`)}
}
`;
  return { code, workgroups: text.groups(ownHeads), operands: text.places };
}

/** Statements of two lists, each evenly spread among the other's. */
const inTurns = (one: readonly string[], other: readonly string[]): string =>
  [one, other].flatMap((list, k) => list.map((text, i) => ({ text, at: (i + 0.5 + k / 10) / list.length })))
    .sort((a, b) => a.at - b.at).map(({ text }) => text).join("\n    ");

/** Parts of a pass's text. */
function textOf(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  form: MatrixBlocks,
  names: PassNames,
) {
  requireBlocks(form, names);
  const { subgroups, rows: ownRows, columns, early = false, crosswise = false } = form;
  const { tokens, heads, kvHeads, headDim, scale } = shape, scaled = isScaled(shape);
  const bound = [
    ...new Set([...names.rows, ...names.columns, ...names.others, ...(scaled ? ["largest"] : []), ...names.outputs]),
  ];
  const places = bound.map((name) => operands.findIndex((operand) => operand.name === name));
  const inputs = [...names.rows, ...names.columns];
  const texts = storage(
    traits,
    places.map((place): Operand => {
      const operand = operands[place];
      // Inputs are read as words of eight; scratch is only read.
      if (inputs.includes(operand.name)) return { ...operand, type: "u32" };
      if (operand.name === "scratch") return { ...operand, type: "u32", access: "write" };
      return operand.access === "scratch" ? { ...operand, access: "read" } : operand;
    }),
    {
      ...Object.fromEntries(inputs.map((name) => [name, "vec4u"])),
      ...Object.fromEntries(names.outputs.filter((name) => name !== "logSumExp").map((name) => [name, "vec4f"])),
      rowData: "vec4u",
      scratch: "vec4u",
      largest: "vec4u",
    },
  );
  const scoreFactor = scaled ? "scoreFactor" : float(scale * log2e);
  /** A word of eight numbers as `f16`. */
  const asHalves = (name: string, word: string) => scaled ? `halves(${word}, scale_${name})` : word;
  const threads = subgroups * matrixLanes, rows = subgroups * ownRows;
  const blocks = Math.ceil(tokens / rows), parts = headDim / matrixSize;
  const octets = headDim / octet, line = octets + 1;
  const headsOf = (name: string) => ["k", "v", "dK", "dV"].includes(name) ? kvHeads : heads;

  // Lines of scores are queries'. One or two lanes share a line.
  const lines = names.turned ? columns : ownRows, width = names.turned ? ownRows : columns;
  const sharers = matrixLanes / lines, quads = width / 4 / sharers;
  /** One word more than it holds, for the sake of banks. */
  const scoreLine = width / 4 + (names.beside ? width / octet : 0) + 1;
  const ownLine = sharers === 1 ? "lane" : `lane / ${sharers}u`;

  // Workgroup memory, in words: tiles of columns, scores, tiles of rows. Rows go into registers, one operand after the
  // other, before anything else comes, and so take its place.
  const tileWords = columns * line, scoreWords = lines * scoreLine, rowWords = rows * line;
  const tileAt = (name: string) => names.columns.indexOf(name) * tileWords;
  const scoresAt = names.columns.length * tileWords;
  const rest = scoresAt + names.scores * subgroups * scoreWords;
  const shared = !unit.readsLate;
  const rowsAt = shared ? 0 : rest;
  const finishLine = matrixSize / 4 + 1;
  const words = Math.max(
    shared ? Math.max(rest, rowWords) : rest + names.rows.length * rowWords,
    subgroups * ownRows * finishLine,
  );
  const area = (score: number) => `${scoresAt + score * subgroups * scoreWords}u + subgroup * ${scoreWords}u`;
  const ownScore = (score: number) =>
    `${area(score)} + ${ownLine} * ${scoreLine}u${sharers === 1 ? "" : ` + lane % ${sharers}u * ${quads}u`}`;

  /** Statements for each of `count` words, dealt out to the invocations; all of them may load, some may not store. */
  const rounds = (count: number) =>
    upTo(Math.ceil(count / threads)).map((round) => ({
      round,
      whole: (round + 1) * threads <= count,
      index: (round + 1) * threads <= count
        ? `(${round * threads}u + local)`
        : `min(${round * threads}u + local, ${count - 1}u)`,
    }));
  const word = (name: string, token: string, head: string, i: string) =>
    `${name}[(min(${token} + ${i} / ${octets}u, ${tokens - 1}u) * ${
      headsOf(name)
    }u + ${head}) * ${octets}u + ${i} % ${octets}u]`;
  /** A matrix of the columns that pass, from a column and an element of the head on. */
  const columnTile = (name: string, first: number, p: number, alongDepth: boolean): MatrixPlace => ({
    tile: "tiles",
    offset: `${tileAt(name) + first * line + p * 2}u`,
    stride: line,
    alongDepth,
  });
  const rowTile = (name: string, i: number, p: number): MatrixPlace => ({
    tile: "tiles",
    offset: `${
      rowsAt + (shared ? 0 : names.rows.indexOf(name) * rowWords) + i * matrixSize * line + 2 * p
    }u + subgroup * ${ownRows * line}u`,
    stride: line,
    alongDepth: true,
  });
  const rowsLeft = (names.turned === true) === crosswise;
  const loadRow = (name: string, i: number, p: number) =>
    (rowsLeft ? unit.left : unit.right)(`tiles_${name}${i}_${p}`, rowTile(name, i, p));
  const rowMatrices = upTo(ownRows / matrixSize), columnMatrices = upTo(columns / matrixSize);
  const groups = (heads: number) => spread(blocks * heads);

  const bring = (name: string, token: string, head: string) =>
    rounds(columns * octets).map(({ round, index }) =>
      `${early ? "" : "let "}next_${name}${round} = ${word(name, token, head, index)};`
    ).join(" ");
  const stage = (name: string) =>
    rounds(columns * octets).map(({ round, whole }) =>
      `${whole ? "" : `if (local < ${columns * octets - round * threads}u) `}{ let i = ${
        round * threads
      }u + local; tiles[${tileAt(name)}u + i / ${octets}u * ${line}u + i % ${octets}u] = ${
        asHalves(name, `next_${name}${round}`)
      }; }`
    ).join(" ");

  return {
    places,
    blocks,
    rows,
    groups,
    quads,
    ownLine,
    bring,
    /** Where what is asked for early stays. */
    declareNext: early
      ? names.columns.flatMap((name) =>
        rounds(columns * octets).map(({ round }) => `var next_${name}${round} = vec4u();`)
      ).join(" ")
      : "",
    early: (statements: string) => early ? statements : "",
    late: (statements: string) => early ? "" : statements,
    stage,
    head: `${unit.directives}${texts.directives}
${texts.bindings}
var<workgroup> tiles: array<vec4u, ${words}>;
${unit.declarations(["tiles"])}
${scaled ? halvesText : ""}`,
    scoreFactor,
    /** rowsum(dO·o), as gradients of scores are scaled. */
    delta: `bitcast<f32>(data.y)${scaled ? ` * scale_v * ${float(gradientScale(shape))} * scale_dO` : ""}`,
    unscaled: (name: string) => scaled ? ` * unscale_${name}` : "",
    gradientFactor: scaled ? `${float(scale / gradientScale(shape))} * unscale_v * unscale_dO` : float(scale),
    open(heads: number, head = "head") {
      const workgroups = groups(heads);
      return `
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  ${workgroups[1] > 1 ? `if (id >= ${blocks * heads}u) { return; }` : ""}
  let block = id / ${heads}u;
  let ${head} = id % ${heads}u;
  let subgroup = ${subgroups === 1 ? "0u" : `local / ${matrixLanes}u`};
  let lane = ${subgroups === 1 ? "local" : `local % ${matrixLanes}u`};${
        scaled
          ? `${scalesText(inputs)}
  let scoreFactor = ${float(scale * log2e)} * unscale_q * unscale_k;`
          : ""
      }`;
    },
    /** Matrices of sums: by row and by part of the head. */
    sums: (name: string) => rowMatrices.flatMap((i) => upTo(parts).map((j) => `${name}${i}_${j}`)),
    /** Brings the block's rows into workgroup memory, and from there into the units, where they stay. */
    holdRows: (headOf: Readonly<Record<string, string>>) =>
      names.rows.map((name, k) => `
  ${
        rounds(rows * octets).map(({ round, whole }) =>
          `${whole ? "" : `if (local < ${rows * octets - round * threads}u) `}{ let i = ${round * threads}u + local; ` +
          `tiles[${rowsAt + (shared ? 0 : k * rowWords)}u + i / ${octets}u * ${line}u + i % ${octets}u] = ${
            asHalves(name, word(name, "firstRow", headOf[name], "i"))
          }; }`
        ).join("\n  ")
      }
  ${shared || k === names.rows.length - 1 ? "workgroupBarrier();" : ""}
  ${
        (shared ? [name] : k === names.rows.length - 1 ? names.rows : []).flatMap((name) =>
          rowMatrices.flatMap((i) => upTo(parts).map((p) => loadRow(name, i, p)))
        ).join("\n  ")
      }
  ${shared ? "workgroupBarrier();" : ""}`).join(""),
    /** Puts what was brought where the next step finds it. */
    next: (all: readonly string[], bring: string) =>
      `workgroupBarrier(); ${all.map((name) => stage(name)).join(" ")} ${bring} workgroupBarrier();`,
    /** Queries times keys, left in workgroup memory as scores. */
    product(row: string, column: string, score: number) {
      return this.productParts(row, column, score).join("\n    ");
    },
    /** The same as statements that others may come between. */
    productParts(row: string, column: string, score: number): string[] {
      const sum = (r: number, c: number) => `score${score}_${r}_${c}`;
      const all = rowMatrices.flatMap((r) => columnMatrices.map((c) => ({ r, c })));
      return [
        all.map(({ r, c }) => unit.sum(sum(r, c))).join(" "),
        ...upTo(parts).flatMap((p) =>
          columnMatrices.map((c) =>
            `{ ${(rowsLeft ? unit.right : unit.left)("tiles_c", columnTile(column, c * matrixSize, p, true))} ${
              rowMatrices.map((r) => {
                const held = `tiles_${row}${r}_${p}`;
                return rowsLeft
                  ? unit.multiplyAdd(sum(r, c), held, "tiles_c")
                  : unit.multiplyAdd(sum(r, c), "tiles_c", held);
              }).join(" ")
            } }`
          )
        ),
        ...all.map(({ r, c }) => {
          const [down, across] = names.turned ? [c, r] : [r, c];
          const place = `${area(score)} + ${down * matrixSize * scoreLine + across * 4}u`;
          return unit.store(sum(r, c), "tiles", place, scoreLine, crosswise ? "columns" : "rows");
        }),
      ];
    },
    sharers,
    /** Declares `name`: a value of a line, from those of the lanes that share it. */
    together: (name: string, value: string, merge: (a: string, b: string) => string) =>
      sharers === 1
        ? `let ${name} = ${value};`
        : `let ${name}_own = ${value}; ${unit.neighbour(`${name}_other`, `${name}_own`)} let ${name} = ${
          merge(`${name}_own`, `${name}_other`)
        };`,
    /** Four keys of the lane's line. */
    column: (q: number) =>
      `vec4u(${names.turned ? "ownRow" : "firstColumn"}${
        sharers === 1 ? "" : ` + lane % ${sharers}u * ${4 * quads}u`
      }) + vec4u(${upTo(4).map((c) => `${4 * q + c}u`).join(", ")})`,
    score: (score: number, q: number) => `bitcast<vec4f>(tiles[${ownScore(score)} + ${q}u])`,
    weights,
    /** Stores a lane's part of a line, as `f16`, where `place` says that eight of the workgroup's keys go. */
    keep: (place: (key: string) => string, values: string) =>
      upTo(quads / 2).map((w) =>
        `${
          place(
            `subgroup * ${ownRows}u + ${sharers === 1 ? "" : `lane % ${sharers}u * ${4 * quads}u + `}${octet * w}u`,
          )
        } = ${wordOf(values, w)};`
      ).join("\n      "),
    /** From scores and gradients of weights: gradients of scores, and the weights too where the pass sums with them. */
    scoreGradients(
      { edge, seen, weights: weighs }: { edge: string; seen: (key: string) => string; weights: boolean },
    ) {
      const own = upTo(quads);
      return `
      ${own.map((q) => `var s${q} = ${this.score(0, q)};`).join("\n      ")}
      if (${edge}) {
        ${
        own.map((q) => `{ let column = ${this.column(q)}; s${q} = select(vec4f(-1e30f), s${q}, ${seen("column")}); }`)
          .join("\n        ")
      }
      }
      ${
        own.map((q) =>
          `let p${q} = exp2(fma(s${q}, vec4f(${scoreFactor}), vec4f(-lse))); ` +
          `let d${q} = p${q} * (${this.score(1, q)}${scaled ? ` * ${float(gradientScale(shape))}` : ""} - delta);`
        ).join("\n      ")
      }
      ${weighs ? weights(0, "p") : ""}
      ${weights(weighs ? 1 : 0, "d")}`;
    },
    /** Adds to sums the columns of a tile, weighted. */
    sum(sum: string, score: number, column: string) {
      return this.sumParts(sum, score, column).join("\n    ");
    },
    /** The same as statements that others may come between. */
    sumParts(sum: string, score: number, column: string): string[] {
      /** Words from a line's begin to the weights of 16 keys. In place, a sharer's stand where its scores did. */
      const weightsAt = (block: number) => {
        if (names.beside) return width / 4 + block * matrixSize / octet;
        const share = width / sharers, sharer = Math.floor(block * matrixSize / share);
        return sharer * quads + (block * matrixSize - sharer * share) / octet;
      };
      const weight = (i: number, c: number) => `tiles_${sum}${c}_${i}`;
      return columnMatrices.flatMap((c) => [
        rowMatrices.map((i) =>
          unit.left(weight(i, c), {
            tile: "tiles",
            offset: names.turned
              ? `${area(score)} + ${c * matrixSize * scoreLine + weightsAt(i)}u`
              : `${area(score)} + ${i * matrixSize * scoreLine + weightsAt(c)}u`,
            stride: scoreLine,
            alongDepth: !names.turned,
          })
        ).join(" "),
        ...upTo(parts).map((j) =>
          `{ ${unit.right("tiles_c", columnTile(column, c * matrixSize, j, false))} ${
            rowMatrices.map((i) => unit.multiplyAdd(`${sum}${i}_${j}`, weight(i, c), "tiles_c")).join(" ")
          } }`
        ),
      ]);
    },
    /** Stores a block of sums, scaled row by row. */
    finish(sum: string, output: string, head: string, factor: string) {
      const share = matrixLanes / ownRows, quads = 4 / share;
      const at = `subgroup * ${ownRows * finishLine}u`;
      return `{ let factor = ${factor}; let line = ${share === 1 ? "lane" : `lane / ${share}u`}; let part = ${
        share === 1 ? "0u" : `lane % ${share}u * ${quads}u`
      };` + upTo(parts).map((j) => `
  ${
        rowMatrices.map((i) =>
          unit.store(`${sum}${i}_${j}`, "tiles", `${at} + ${i * matrixSize * finishLine}u`, finishLine)
        ).join(" ")
      }
  workgroupBarrier();
  if (ownRow + line < ${tokens}u) {
    let at = ${at} + line * ${finishLine}u + part;
    let place = ((ownRow + line) * ${headsOf(output)}u + ${head}) * ${headDim / 4}u + ${j * 4}u + part;
    ${
        upTo(quads).map((q) => texts.store(output, `place + ${q}u`, `bitcast<vec4f>(tiles[at + ${q}u]) * factor`)).join(
          "\n    ",
        )
      }
  }
  workgroupBarrier();`).join("") + "}";
    },
  };

  /** Puts a lane's part of a line beside its scores or in their place, as `f16`: words that no other lane reads. */
  function weights(score: number, values: string) {
    const share = sharers === 1 ? "" : ` + lane % ${sharers}u * ${quads / 2}u`;
    const first = names.beside
      ? `${area(score)} + ${ownLine} * ${scoreLine}u + ${width / 4}u${share}`
      : ownScore(score);
    return upTo(quads / 2).map((w) => `tiles[${first} + ${w}u] = ${wordOf(values, w)};`).join("\n    ");
  }
  function wordOf(values: string, w: number) {
    return `vec4u(${
      [`${values}${2 * w}.xy`, `${values}${2 * w}.zw`, `${values}${2 * w + 1}.xy`, `${values}${2 * w + 1}.zw`]
        .map((pair) => `pack2x16float(${pair})`).join(", ")
    })`;
  }
}
