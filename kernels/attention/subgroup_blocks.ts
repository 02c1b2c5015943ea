/**
 * The form for rasterisers in software, where loads cost and broadcasts do not (see `matmul/subgroup_broadcast.ts`): a
 * subgroup is a workgroup. In products its lanes lie along the columns, rows are loaded once and broadcast; the tile of
 * weights stays where it is, lanes broadcast theirs while the lanes of a sum lie along the head. About three times as
 * fast there as the other form.
 */
import type { DeviceTraits } from "../kernel.ts";
import { subgroupPrelude } from "../matmul/dialect.ts";
import { upTo } from "../matmul/text.ts";
import type { BlockForm } from "./block_form.ts";

/** @param traits of a device with subgroups of 4 to 32 lanes */
export function subgroupBlocks(headDim: number, traits: DeviceTraits): BlockForm {
  const lanes = traits.subgroupSize;
  const rows = Math.max(8, lanes / 2), columns = 4 * lanes;
  const headQuads = Math.ceil(headDim / 4);
  const quads = Math.ceil(headQuads / lanes);
  const productQuads = Math.ceil(headQuads / 2) * 2;
  const loads = rows * 2 / lanes;
  return {
    rows,
    columns,
    localRows: rows,
    quads,
    paddedQuads: [productQuads, quads * lanes],
    prelude: subgroupPrelude(traits),
    declarations: "",
    open: `
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(subgroup_invocation_id) lane: u32) {`,
    row: (i) => `(firstRow + ${i}u)`,
    heldColumns: "(vec4u(firstColumn + lane * 4u) + vec4u(0u, 1u, 2u, 3u))",
    quad: (j) => `(${j * lanes}u + lane)`,
    product(name, row, column) {
      const element = (i: number, e: number) => {
        const at = i * 2 + (e >> 2);
        return `subgroupBroadcast(r${Math.floor(at / lanes)}[${e & 3}], ${at % lanes}u)`;
      };
      return `
    ${upTo(rows).map((i) => `var ${name}${i} = vec4f();`).join(" ")}
    for (var quad = 0u; quad < ${productQuads}u; quad += 2u) {
      ${
        upTo(loads).map((l) =>
          `let r${l} = ${row(`firstRow + (${l * lanes}u + lane) / 2u`, `quad + (${l * lanes}u + lane) % 2u`)};`
        ).join("\n      ")
      }
      ${
        upTo(2).flatMap((p) =>
          upTo(4).map((c) => `let c${p}_${c} = ${column(`firstColumn + lane * 4u + ${c}u`, `quad + ${p}u`)};`)
        ).join("\n      ")
      }
      ${
        upTo(8).map((e) => `let t${e} = vec4f(${upTo(4).map((c) => `c${e >> 2}_${c}[${e & 3}]`).join(", ")});`)
          .join("\n      ")
      }
      ${
        upTo(rows).flatMap((i) => upTo(8).map((e) => `${name}${i} = fma(vec4f(${element(i, e)}), t${e}, ${name}${i});`))
          .join("\n      ")
      }
    }`;
    },
    weigh(sum, name, column) {
      // A loop over the lanes that hold the weights: written out, the text is four times as long to compile and no faster.
      return `
    for (var owner = 0u; owner < ${lanes}u; owner++) {
      ${
        upTo(4).flatMap((t) =>
          upTo(quads).map((j) => `let c${t}_${j} = ${column(`firstColumn + owner * 4u + ${t}u`, this.quad(j))};`)
        ).join("\n      ")
      }
      ${
        upTo(rows).flatMap((i) =>
          upTo(4).map((t) =>
            `{ let weight = vec4f(subgroupShuffle(${name}${i}[${t}], owner)); ${
              upTo(quads).map((j) => `${sum}${i}_${j} = fma(weight, c${t}_${j}, ${sum}${i}_${j});`).join(" ")
            } }`
          )
        ).join("\n      ")
      }
    }`;
    },
    merge: (name, values, operation) =>
      values.map((value, i) => `let ${name}${i} = ${operation === "max" ? "subgroupMax" : "subgroupAdd"}(${value});`)
        .join("\n    "),
  };
}
