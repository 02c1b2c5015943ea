/**
 * Flash attention on matrix units, `f16` with sums and softmax in `f32`: the same passes as `flash.ts`. Four subgroups have
 * 16 rows each of a block of 64; columns pass by 32 at a time through workgroup memory, the next ones on their way through
 * registers. Products of rows and columns leave the units for workgroup memory, where two lanes share a row: they mask
 * and exponentiate it and put the weights back as `f16`, for the product that sums columns up.
 *
 * Sums in the units cannot be scaled row by row. So the forward pass lets weights grow to 2^8 past the largest score that
 * it has seen (`f16` holds 2^16) before it takes its sums out and scales them, which after the first blocks is rare
 * (conditional rescaling, as in FlashAttention-4).
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { matrixLanes, type MatrixPlace, matrixSize, type MatrixUnit, octet } from "../matrix_unit.ts";
import { float } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import type { AttentionShape } from "./shape.ts";

const subgroups = 4, rows = subgroups * matrixSize, columns = 32, threads = subgroups * matrixLanes;
/** Words of a line of scores: one more than it holds, for the sake of banks. */
const scoreLine = columns / 4 + 1;
/** Columns of a lane, four at a time; words of its weights. */
const quads = columns / 8, weightWords = columns / 16;
const log2e = Math.LOG2E;

/** Whether this form can do a shape. */
export const fitsMatrixBlocks = ({ type, headDim }: AttentionShape): boolean =>
  type === "f16" && headDim % matrixSize === 0 && headDim <= 128;

interface PassNames {
  /** Operands of which a block of rows is held, in `f16`, those that pass by as columns, and what is written. */
  readonly rows: readonly string[];
  readonly columns: readonly string[];
  readonly others: readonly string[];
  readonly outputs: readonly string[];
  /** Products of rows and columns that are alive together. */
  readonly scores: number;
  /** Words of workgroup memory beside tiles and scores. */
  readonly extra?: number;
}

/** q, k, v, start → o, logSumExp. */
export function matrixForwardPass(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
): Pass {
  const { tokens, heads, kvHeads, headDim, scale } = shape;
  const text = textOf(shape, operands, traits, unit, {
    rows: ["q"],
    columns: ["k", "v"],
    others: ["start"],
    outputs: ["o", "logSumExp"],
    scores: 1,
  });
  const parts = upTo(headDim / matrixSize), own = upTo(quads);
  const code = `
${text.head}
var<workgroup> grown: u32;
${text.open(heads)}
  let kvHead = head / ${heads / kvHeads}u;
  let firstRow = (${text.blocks - 1}u - block) * ${rows}u; // the longest first
  let row = firstRow + subgroup * 16u + lane / 2u;
  let begin = start[min(row, ${tokens - 1}u)];
  ${text.holdRows({ q: "head" })}
  var largest = -1e30f; var total = 0f; var turn = 0u;
  ${parts.map((j) => unit.sum(`o${j}`)).join(" ")}
  ${text.declareNext}
  let finish = min(firstRow + ${rows}u, ${tokens}u);
  let first = start[firstRow];
  ${text.bring("first", { k: "kvHead", v: "kvHead" })}
  for (var firstColumn = first; firstColumn < finish; firstColumn += ${columns}u) {
    turn++;
    ${text.stage}
    workgroupBarrier();
    ${text.bring(`firstColumn + ${columns}u`, { k: "kvHead", v: "kvHead" })}
    ${text.product("q", "k", 0)}
    workgroupBarrier();
    ${text.columns}
    ${
    own.map((q) =>
      `let seen${q} = (column${q} >= vec4u(begin)) & (column${q} <= vec4u(row)); ` +
      `var s${q} = select(vec4f(-1e30f), ${text.score(0, q)} * ${float(scale * log2e)}, seen${q});`
    ).join("\n    ")
  }
    let most = ${own.map((q) => `s${q}`).reduce((a, b) => `max(${a}, ${b})`)};
    let mine = max(max(most.x, most.y), max(most.z, most.w));
    ${unit.neighbour("theirs", "mine")}
    let top = max(mine, theirs);
    let grows = top > largest + 8f;
    let reached = select(largest, top, grows);
    let shrink = exp2(largest - reached);
    if (grows && largest > -1e29f) { grown = turn; }
    largest = reached;
    if (workgroupUniformLoad(&grown) == turn) {
      ${
    parts.map((j) => `
      ${unit.store(`o${j}`, "tiles", text.area(0), scoreLine)}
      workgroupBarrier();
      ${
      [0, 1].map((i) =>
        `{ let at = ${text.area(0)} + lane / 2u * ${scoreLine}u + lane % 2u * 2u + ${i}u; ` +
        "tiles[at] = bitcast<vec4u>(bitcast<vec4f>(tiles[at]) * shrink); }"
      ).join("\n      ")
    }
      workgroupBarrier();
      ${unit.reload(`o${j}`, "tiles", text.area(0), scoreLine)}
      workgroupBarrier();`).join("")
  }
    }
    ${own.map((q) => `s${q} = select(vec4f(), exp2(s${q} - largest), seen${q});`).join("\n    ")}
    let all = ${own.map((q) => `s${q}`).join(" + ")};
    total = total * shrink + ((all.x + all.y) + (all.z + all.w));
    ${text.weights(0, "s")}
    workgroupBarrier();
    ${text.sum("o", 0, "v")}
    workgroupBarrier();
  }
  ${unit.neighbour("others", "total")}
  let whole = total + others;
  ${text.finish("o", "o", "head", "1f / whole")}
  if (lane % 2u == 0u && row < ${tokens}u) {
    logSumExp[row * ${heads}u + head] = (largest + log2(whole)) * ${float(Math.LN2)};
  }
}
`;
  return { code, workgroups: text.groups(heads), operands: text.places };
}

/** q, k, v, dO, rowData → dQ, dK, dV. */
export function matrixBackwardPasses(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
): Pass[] {
  // Sums of both gradients of a long head do not fit the registers.
  const together: readonly (readonly ("dK" | "dV")[])[] = shape.headDim <= 64 ? [["dK", "dV"]] : [["dK"], ["dV"]];
  return [
    matrixQueryGradientPass(shape, operands, traits, unit),
    ...together.map((gradients) => matrixKeyGradientPass(shape, operands, traits, unit, gradients)),
  ];
}

/** q, k, v, dO, rowData → dQ. */
function matrixQueryGradientPass(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
): Pass {
  const { tokens, heads, kvHeads, headDim, scale } = shape;
  const text = textOf(shape, operands, traits, unit, {
    rows: ["q", "dO"],
    columns: ["k", "v"],
    others: ["rowData"],
    outputs: ["dQ"],
    scores: 2,
  });
  const own = upTo(quads);
  const code = `
${text.head}
${text.open(heads)}
  let kvHead = head / ${heads / kvHeads}u;
  let firstRow = (${text.blocks - 1}u - block) * ${rows}u;
  let row = firstRow + subgroup * 16u + lane / 2u;
  let data = rowData[min(row, ${tokens - 1}u) * ${heads}u + head];
  let lse = bitcast<f32>(data.x); let delta = bitcast<f32>(data.y);
  ${text.holdRows({ q: "head", dO: "head" })}
  ${upTo(headDim / matrixSize).map((j) => unit.sum(`dQ${j}`)).join(" ")}
  ${text.declareNext}
  let finish = min(firstRow + ${rows}u, ${tokens}u);
  let first = rowData[firstRow * ${heads}u + head].z;
  ${text.bring("first", { k: "kvHead", v: "kvHead" })}
  for (var firstColumn = first; firstColumn < finish; firstColumn += ${columns}u) {
    ${text.stage}
    workgroupBarrier();
    ${text.bring(`firstColumn + ${columns}u`, { k: "kvHead", v: "kvHead" })}
    ${text.product("q", "k", 0)}
    ${text.product("dO", "v", 1)}
    workgroupBarrier();
    ${text.columns}
    ${
    own.map((q) =>
      `let seen${q} = (column${q} >= vec4u(data.z)) & (column${q} <= vec4u(row)); ` +
      `let s${q} = select(vec4f(), exp2(${text.score(0, q)} * ${float(scale * log2e)} - lse), seen${q}) * ` +
      `(${text.score(1, q)} - delta);`
    ).join("\n    ")
  }
    ${text.weights(0, "s")}
    workgroupBarrier();
    ${text.sum("dQ", 0, "k")}
    workgroupBarrier();
  }
  ${text.finish("dQ", "dQ", "head", float(scale))}
}
`;
  return { code, workgroups: text.groups(heads), operands: text.places };
}

/** q, k, [v], dO, rowData → dK, dV or one of them: rows are keys here, columns the queries of every head of the group. */
function matrixKeyGradientPass(
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  gradients: readonly ("dK" | "dV")[],
): Pass {
  const { tokens, heads, kvHeads, headDim, scale } = shape;
  const wantsK = gradients.includes("dK"), wantsV = gradients.includes("dV");
  const text = textOf(shape, operands, traits, unit, {
    rows: wantsK ? ["k", "v"] : ["k"],
    columns: ["q", "dO"],
    others: ["rowData"],
    outputs: gradients,
    scores: wantsK ? 2 : 1,
    extra: columns,
  });
  const group = heads / kvHeads, own = upTo(quads);
  const dataOf = (q: number, c: number) => `data${q}_${c}`;
  const gather = (q: number, type: string, component: string, wrap = (word: string) => word) =>
    `${type}(${upTo(4).map((c) => wrap(`${dataOf(q, c)}.${component}`)).join(", ")})`;
  const float32 = (word: string) => `bitcast<f32>(${word})`;
  const rowDataOf = (firstColumn: string) => `
    if (local < ${columns}u) { nextData = rowData[min(${firstColumn} + local, ${tokens - 1}u) * ${heads}u + head]; }`;
  const code = `
${text.head}
${text.open(kvHeads, "kvHead")}
  let firstRow = block * ${rows}u;
  let lastRow = min(firstRow + ${rows}u, ${tokens}u) - 1u;
  let row = firstRow + subgroup * 16u + lane / 2u;
  ${text.holdRows({ k: "kvHead", v: "kvHead" })}
  ${gradients.flatMap((name) => upTo(headDim / matrixSize).map((j) => unit.sum(`${name}${j}`))).join(" ")}
  ${text.declareNext}
  var nextData = vec4u();
  for (var head = kvHead * ${group}u; head < (kvHead + 1u) * ${group}u; head++) {
  let finish = rowData[lastRow * ${heads}u + head].w;
  ${text.bring("firstRow", { q: "head", dO: "head" })}
  ${rowDataOf("firstRow")}
  for (var firstColumn = firstRow; firstColumn < finish; firstColumn += ${columns}u) {
    ${text.stage}
    if (local < ${columns}u) { tiles[${text.extraAt}u + local] = nextData; }
    workgroupBarrier();
    ${text.bring(`firstColumn + ${columns}u`, { q: "head", dO: "head" })}
    ${rowDataOf(`firstColumn + ${columns}u`)}
    ${text.product("k", "q", 0)}
    ${wantsK ? text.product("v", "dO", 1) : ""}
    workgroupBarrier();
    ${text.columns}
    ${
    own.map((q) =>
      `
    ${
        upTo(4).map((c) => `let ${dataOf(q, c)} = tiles[${text.extraAt + 4 * q + c}u + lane % 2u * ${columns / 2}u];`)
          .join(" ")
      }
    let seen${q} = (column${q} >= vec4u(row)) & (${gather(q, "vec4u", "z")} <= vec4u(row)) & ` +
      `(column${q} < vec4u(${tokens}u));
    let p${q} = select(vec4f(), exp2(${text.score(0, q)} * ${float(scale * log2e)} - ${
        gather(q, "vec4f", "x", float32)
      }), seen${q});
    ${wantsK ? `let d${q} = p${q} * (${text.score(1, q)} - ${gather(q, "vec4f", "y", float32)});` : ""}`
    ).join("\n    ")
  }
    ${wantsV ? text.weights(0, "p") : ""}
    ${wantsK ? text.weights(1, "d") : ""}
    workgroupBarrier();
    ${wantsV ? text.sum("dV", 0, "dO") : ""}
    ${wantsK ? text.sum("dK", 1, "q") : ""}
    workgroupBarrier();
  }
  }
  ${wantsK ? text.finish("dK", "dK", "kvHead", float(scale)) : ""}
  ${wantsV ? text.finish("dV", "dV", "kvHead", "1f") : ""}
}
`;
  return { code, workgroups: text.groups(kvHeads), operands: text.places };
}

/** Parts of a pass's text. */
function textOf(
  { tokens, heads, kvHeads, headDim }: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
  names: PassNames,
) {
  const bound = [...new Set([...names.rows, ...names.columns, ...names.others, ...names.outputs])];
  const places = bound.map((name) => operands.findIndex((operand) => operand.name === name));
  const inputs = [...names.rows, ...names.columns];
  const texts = storage(
    traits,
    places.map((place): Operand => {
      const operand = operands[place];
      // Inputs are read as words of eight; scratch is only read.
      if (inputs.includes(operand.name)) return { ...operand, type: "u32" };
      return operand.access === "scratch" ? { ...operand, access: "read" } : operand;
    }),
    {
      ...Object.fromEntries(inputs.map((name) => [name, "vec4u"])),
      ...Object.fromEntries(names.outputs.filter((name) => name !== "logSumExp").map((name) => [name, "vec4f"])),
      rowData: "vec4u",
    },
  );
  const blocks = Math.ceil(tokens / rows), parts = headDim / matrixSize;
  const octets = headDim / octet, line = octets + 1;
  const headsOf = (name: string) => ["k", "v", "dK", "dV"].includes(name) ? kvHeads : heads;

  // Workgroup memory, in words: tiles of columns, scores, extra words, tiles of rows. Rows are read into the units once,
  // so where there is no room they share with what comes later.
  const tileWords = columns * line, scoreWords = rows * scoreLine, rowWords = rows * line;
  const tileAt = (name: string) => names.columns.indexOf(name) * tileWords;
  const scoresAt = names.columns.length * tileWords;
  const extraAt = scoresAt + names.scores * scoreWords;
  const rest = extraAt + (names.extra ?? 0);
  const apart = (rest + names.rows.length * rowWords) * 16 <= traits.limits.maxComputeWorkgroupStorageSize;
  const rowsAt = apart ? rest : 0;
  const words = apart ? rest + names.rows.length * rowWords : Math.max(rest, names.rows.length * rowWords);
  const area = (score: number) => `${scoresAt + score * scoreWords}u + subgroup * ${matrixSize * scoreLine}u`;
  const ownScore = (score: number) => `${area(score)} + lane / 2u * ${scoreLine}u + lane % 2u * ${quads}u`;

  const rounds = upTo(Math.ceil(columns * octets / threads));
  const guarded = (round: number, count: number, statement: string) =>
    (round + 1) * threads <= count
      ? `{ let i = ${round * threads}u + local; ${statement} }`
      : `if (local < ${count - round * threads}u) { let i = ${round * threads}u + local; ${statement} }`;
  const word = (name: string, token: string, head: string) =>
    `${name}[(min(${token} + i / ${octets}u, ${tokens - 1}u) * ${
      headsOf(name)
    }u + ${head}) * ${octets}u + i % ${octets}u]`;
  const columnTile = (name: string, first: number, p: number, alongDepth: boolean): MatrixPlace => ({
    tile: "tiles",
    offset: `${tileAt(name) + first * line + p * 2}u`,
    stride: line,
    alongDepth,
  });
  const groups = (heads: number) => spread(blocks * heads);

  return {
    places,
    blocks,
    groups,
    area,
    extraAt,
    head: `${unit.directives}${texts.directives}
${texts.bindings}
var<workgroup> tiles: array<vec4u, ${words}>;
${unit.declarations(["tiles"])}`,
    open(heads: number, head = "head") {
      const workgroups = groups(heads);
      return `
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  ${workgroups[1] > 1 ? `if (id >= ${blocks * heads}u) { return; }` : ""}
  let block = id / ${heads}u;
  let ${head} = id % ${heads}u;
  let subgroup = local / ${matrixLanes}u;
  let lane = local % ${matrixLanes}u;`;
    },
    /** Brings the block's rows into the units. */
    holdRows: (headOf: Readonly<Record<string, string>>) => `
  ${
      names.rows.map((name, i) =>
        upTo(Math.ceil(rows * octets / threads)).map((round) =>
          guarded(
            round,
            rows * octets,
            `tiles[${rowsAt + i * rowWords}u + i / ${octets}u * ${line}u + i % ${octets}u] = ${
              word(name, "firstRow", headOf[name])
            };`,
          )
        ).join(" ")
      ).join("\n  ")
    }
  workgroupBarrier();
  ${
      names.rows.map((name, i) =>
        upTo(parts).map((p) =>
          unit.left(`tiles_${name}${p}`, {
            tile: "tiles",
            offset: `${rowsAt + i * rowWords + 2 * p}u + subgroup * ${matrixSize * line}u`,
            stride: line,
            alongDepth: true,
          })
        ).join("\n  ")
      ).join("\n  ")
    }
  workgroupBarrier();`,
    declareNext: names.columns.flatMap((name) => rounds.map((round) => `var next_${name}${round} = vec4u();`)).join(
      " ",
    ),
    /** Asks for columns from a token on. */
    bring: (token: string, headOf: Readonly<Record<string, string>>) =>
      names.columns.map((name) =>
        rounds.map((round) =>
          guarded(round, columns * octets, `next_${name}${round} = ${word(name, token, headOf[name])};`)
        ).join(" ")
      ).join("\n    "),
    /** Puts into workgroup memory what was asked for. */
    stage: names.columns.map((name) =>
      rounds.map((round) =>
        guarded(
          round,
          columns * octets,
          `tiles[${tileAt(name)}u + i / ${octets}u * ${line}u + i % ${octets}u] = next_${name}${round};`,
        )
      ).join(" ")
    ).join("\n    "),
    /** Rows times columns, left in workgroup memory as scores. */
    product(row: string, column: string, score: number) {
      const sums = upTo(columns / matrixSize).map((j) => `score${score}_${j}`);
      return `
    ${sums.map((sum) => unit.sum(sum)).join(" ")}
    ${
        upTo(parts).flatMap((p) =>
          sums.map((sum, j) =>
            `{ ${unit.right("tiles_c", columnTile(column, j * matrixSize, p, true))} ${
              unit.multiplyAdd(sum, `tiles_${row}${p}`, "tiles_c")
            } }`
          )
        ).join("\n    ")
      }
    ${sums.map((sum, j) => unit.store(sum, "tiles", `${area(score)} + ${j * 4}u`, scoreLine)).join("\n    ")}`;
    },
    /** Tokens of the lane's columns. */
    columns: upTo(quads).map((q) =>
      `let column${q} = vec4u(firstColumn + lane % 2u * ${columns / 2}u) + vec4u(${
        upTo(4).map((c) => `${4 * q + c}u`).join(", ")
      });`
    ).join("\n    "),
    score: (score: number, q: number) => `bitcast<vec4f>(tiles[${ownScore(score)} + ${q}u])`,
    /** Puts a lane's part of a row in place of its scores, as `f16`: words that no other lane reads. */
    weights: (score: number, values: string) =>
      upTo(weightWords).map((w) =>
        `tiles[${ownScore(score)} + ${w}u] = vec4u(${
          [`${values}${2 * w}.xy`, `${values}${2 * w}.zw`, `${values}${2 * w + 1}.xy`, `${values}${2 * w + 1}.zw`]
            .map((pair) => `pack2x16float(${pair})`).join(", ")
        });`
      ).join("\n    "),
    /** Adds to a sum the columns of a tile, weighted. */
    sum: (sum: string, score: number, column: string) =>
      upTo(columns / matrixSize).map((c) => {
        // Weights of either half of a row stand where its scores did.
        const half = Math.floor(c * matrixSize / (columns / 2)), within = c * matrixSize - half * columns / 2;
        return `{ ${
          unit.left("tiles_w", {
            tile: "tiles",
            offset: `${area(score)} + ${half * quads + within / octet}u`,
            stride: scoreLine,
            alongDepth: true,
          })
        }
      ${
          upTo(parts).map((j) =>
            `{ ${unit.right("tiles_c", columnTile(column, c * matrixSize, j, false))} ${
              unit.multiplyAdd(`${sum}${j}`, "tiles_w", "tiles_c")
            } }`
          ).join("\n      ")
        } }`;
      }).join("\n    "),
    /** Stores a block of sums, scaled row by row. */
    finish: (sum: string, output: string, head: string, factor: string) =>
      `{ let factor = ${factor};` + upTo(parts).map((j) => `
  ${unit.store(`${sum}${j}`, "tiles", area(0), scoreLine)}
  workgroupBarrier();
  if (row < ${tokens}u) {
    let at = ${area(0)} + lane / 2u * ${scoreLine}u + lane % 2u * 2u;
    let place = (row * ${headsOf(output)}u + ${head}) * ${headDim / 4}u + ${j * 4}u + lane % 2u * 2u;
    ${texts.store(output, "place", "bitcast<vec4f>(tiles[at]) * factor")}
    ${texts.store(output, "place + 1u", "bitcast<vec4f>(tiles[at + 1u]) * factor")}
  }
  workgroupBarrier();`).join("") + "}",
  };
}
