/**
 * dQ on matrix units, from gradients of scores that the pass for dK and dV kept in scratch (`matrix_blocks.ts`): a product
 * of theirs and the keys, in place of a pass that makes scores and their gradients once more.
 *
 * Scratch has tiles of 16 queries by 16 keys, `f16`, block of queries by block of keys as `rounds.ts` numbers them. A tile is
 * 32 words of eight keys: first those of its left half, query by query, then those of the right one. So what a subgroup
 * stores at once lies together, and words that are staged side by side meet in no bank.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { matrixLanes, matrixSize, type MatrixUnit, octet } from "../matrix_unit.ts";
import { float } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { pairsText, type Rounds } from "./rounds.ts";
import { gradientScale, halvesText, isScaled, scalesText } from "./scales.ts";
import type { AttentionShape } from "./shape.ts";

/** Words of a tile. */
const keptTile = matrixSize * matrixSize / octet;

/** Word of a tile of the block of queries at `query` and the keys of the workgroup's block at `key`, a multiple of eight. */
export const keptWord = (block: number, query: string, key: string): string =>
  `((${query}) % ${block}u / 16u * ${block / matrixSize}u + (${key}) / 16u) * ${keptTile}u + ` +
  `(${key}) / 8u % 2u * 16u + (${query}) % 16u`;

/** Words of the tiles of a pair. */
export const pairWords = ({ block }: Rounds): number => block * block / octet;

export interface MatrixSums {
  readonly subgroups: number;
  /** Rows of a subgroup: 16, 32 or 64. Those of all divide a block. */
  readonly rows: number;
  /** Keys of a step: they divide a block too. */
  readonly depth: number;
}

/** scratch, pairs, k → dQ, of the heads of a round. */
export function matrixKeptPass(
  { subgroups, rows: ownRows, depth }: MatrixSums,
  rounds: Rounds,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  unit: MatrixUnit,
): Pass {
  const { tokens, heads, kvHeads, headDim, scale } = shape, { block, blocks } = rounds, group = heads / kvHeads;
  const scaled = isScaled(shape), bound = ["scratch", "pairs", "k", ...(scaled ? ["largest"] : []), "dQ"];
  const places = bound.map((name) => operands.findIndex((operand) => operand.name === name));
  const texts = storage(
    traits,
    places.map((place): Operand => {
      const operand = operands[place];
      if (operand.name === "pairs") return { ...operand, access: "read" };
      return operand.name === "dQ" ? operand : { ...operand, type: "u32", access: "read" };
    }),
    { scratch: "vec4u", k: "vec4u", largest: "vec4u", dQ: "vec4f" },
  );
  const threads = subgroups * matrixLanes, rows = subgroups * ownRows, rowParts = block / rows;
  const tiles = block / matrixSize, octets = headDim / octet, line = octets + 1, parts = headDim / matrixSize;
  const workgroups = spread(rounds.heads * blocks * rowParts);
  const rowTiles = upTo(ownRows / matrixSize), depthTiles = depth / matrixSize, perBlock = block / depth;
  // A line of a tile has a word between it and the next one, for the sake of banks.
  const stagedTile = matrixSize * 3, weightCount = rows / matrixSize * depthTiles * keptTile;
  const keysAt = rows / matrixSize * depthTiles * stagedTile, keyCount = depth * octets;
  const finishLine = matrixSize / 4 + 1, words = Math.max(keysAt + depth * line, rows * finishLine);
  const dealt = (count: number) =>
    upTo(Math.ceil(count / threads)).map((round) => {
      const whole = (round + 1) * threads <= count, index = `${round * threads}u + local`;
      return {
        round,
        index: whole ? `(${index})` : `min(${index}, ${count - 1}u)`,
        guard: whole ? "" : `if (local < ${count - round * threads}u) `,
      };
    });
  const weightRounds = dealt(weightCount), keyRounds = dealt(keyCount);
  /** Brings what a step needs. */
  const bring = (step: string) => `
    {
      let other = first + ${step} / ${perBlock}u;
      let within = ${step} % ${perBlock}u;
      let slot = slotOf(headPlace, baseOf(block) + other) * ${pairWords(rounds)}u;
      ${
    weightRounds.map(({ round, index }) =>
      `{ let i = ${index}; let tile = i / ${keptTile}u; next_weights${round} = scratch[slot + ((firstTile + tile / ${depthTiles}u) * ${tiles}u + within * ${depthTiles}u + tile % ${depthTiles}u) * ${keptTile}u + i % ${keptTile}u]; }`
    ).join("\n      ")
  }
      ${
    keyRounds.map(({ round, index }) =>
      `{ let i = ${index}; next_k${round} = k[(min(other * ${block}u + within * ${depth}u + i / ${octets}u, ${
        tokens - 1
      }u) * ${kvHeads}u + head / ${group}u) * ${octets}u + i % ${octets}u]; }`
    ).join("\n      ")
  }
    }`;
  const stage = `
    ${
    weightRounds.map(({ round, guard }) =>
      `${guard}{ let i = ${
        round * threads
      }u + local; tiles[i / ${keptTile}u * ${stagedTile}u + i % 16u * 3u + i / 16u % 2u] = next_weights${round}; }`
    ).join("\n    ")
  }
    ${
    keyRounds.map(({ round, guard }) =>
      `${guard}{ let i = ${
        round * threads
      }u + local; tiles[${keysAt}u + i / ${octets}u * ${line}u + i % ${octets}u] = ${
        scaled ? `halves(next_k${round}, scale_k)` : `next_k${round}`
      }; }`
    ).join("\n    ")
  }`;
  const multiply = upTo(depthTiles).map((d) => `
    {
      ${
    rowTiles.map((i) =>
      unit.left(`tiles_w${i}`, {
        tile: "tiles",
        offset: `((subgroup * ${rowTiles.length}u + ${i}u) * ${depthTiles}u + ${d}u) * ${stagedTile}u`,
        stride: 3,
        alongDepth: true,
      })
    ).join(" ")
  }
      ${
    upTo(parts).map((j) =>
      `{ ${
        unit.right("tiles_k", {
          tile: "tiles",
          offset: `${keysAt + d * matrixSize * line + 2 * j}u`,
          stride: line,
          alongDepth: false,
        })
      } ${rowTiles.map((i) => unit.multiplyAdd(`sum${i}_${j}`, `tiles_w${i}`, "tiles_k")).join(" ")} }`
    ).join("\n      ")
  }
    }`).join("");
  const area = `subgroup * ${ownRows * finishLine}u`;
  // Two lanes to a line, sixteen lines at a time.
  const finish = upTo(parts).map((j) => `
  ${
    rowTiles.map((i) => unit.store(`sum${i}_${j}`, "tiles", `${area} + ${i * matrixSize * finishLine}u`, finishLine))
      .join(" ")
  }
  workgroupBarrier();
  ${
    rowTiles.map((i) =>
      `if (token + ${i * matrixSize}u < ${tokens}u) {
    let at = ${area} + (${i * matrixSize}u + lane / 2u) * ${finishLine}u + lane % 2u * 2u;
    let place = ((token + ${i * matrixSize}u) * ${heads}u + head) * ${headDim / 4}u + ${4 * j}u + lane % 2u * 2u;
    ${
        upTo(2).map((q) => texts.store("dQ", `place + ${q}u`, `bitcast<vec4f>(tiles[at + ${q}u]) * factor`))
          .join("\n    ")
      }
  }`
    ).join("\n  ")
  }
  workgroupBarrier();`).join("");
  const code = `${unit.directives}${texts.directives}
${texts.bindings}
${pairsText(rounds)}
var<workgroup> tiles: array<vec4u, ${words}>;
${unit.declarations(["tiles"])}
${scaled ? halvesText : ""}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  let headPlace = id % ${rounds.heads}u;
  let part = id / ${rounds.heads}u;
  let head = firstHead() + headPlace;
  if (head >= ${heads}u || part >= ${blocks * rowParts}u) { return; }
  let block = ${blocks - 1}u - part / ${rowParts}u; // the longest first
  let firstTile = part % ${rowParts}u * ${rows / matrixSize}u;
  let first = min(firstKeys(block), block);
  let steps = (block + 1u - first) * ${perBlock}u;
  let subgroup = ${subgroups === 1 ? "0u" : `local / ${matrixLanes}u`};
  let lane = ${subgroups === 1 ? "local" : `local % ${matrixLanes}u`};
  ${scaled ? scalesText(["k", "v", "dO"]) : ""}
  let factor = ${scaled ? `${float(scale / gradientScale(shape))} * unscale_v * unscale_dO * unscale_k` : float(scale)};
  let token = block * ${block}u + firstTile * 16u + subgroup * ${ownRows}u + lane / 2u;
  ${weightRounds.map(({ round }) => `var next_weights${round} = vec4u();`).join(" ")}
  ${keyRounds.map(({ round }) => `var next_k${round} = vec4u();`).join(" ")}
  ${rowTiles.flatMap((i) => upTo(parts).map((j) => unit.sum(`sum${i}_${j}`))).join(" ")}
  ${bring("0u")}
  for (var step = 0u; step < steps; step++) {
    ${stage}
    workgroupBarrier();
    ${bring("min(step + 1u, steps - 1u)")} // the last one is brought twice
    ${multiply}
    workgroupBarrier();
  }
  ${finish}
}
`;
  return { code, workgroups, operands: places };
}
