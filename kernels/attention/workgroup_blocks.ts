/**
 * The form for GPUs: 128 invocations in a grid of 16 x 8 share a block of 64 rows and 32 columns. Operands pass through
 * workgroup memory a slice at a time, so that a head of any size fits the 16 KiB that every device has; the tile of
 * weights goes there once it is known. Lines are padded to five `vec4f`, which keeps neighbours in different banks.
 *
 * An H100 reaches 9 to 13 TFLOP/s forward, 10 to 12 backward (4,096 tokens in one segment, heads of 64 to 256).
 */
import { upTo } from "../matmul/text.ts";
import type { BlockForm } from "./block_form.ts";

const rows = 64, columns = 32, threads = 128;
/** Invocations along the columns, and `vec4f` of a padded line of four. */
const across = 8, line = 5;
const stageLength = (rows + columns) * line;

export function workgroupBlocks(headDim: number): BlockForm {
  const headQuads = Math.ceil(headDim / 4);
  const quads = Math.ceil(headQuads / across), width = quads * across;
  const productQuads = Math.ceil(headQuads / 4) * 4;
  /** Columns staged at once are four times this: a divisor of 8. */
  const together = [8, 4, 2, 1].find((count) => count * 4 * width <= stageLength)!;

  const stage = (count: number, body: (index: string) => string) =>
    upTo(Math.ceil(count / threads)).map((round) => {
      const text = `{ let i = ${round * threads}u + local; ${body("i")} }`;
      return (round + 1) * threads <= count ? text : `if (${round * threads}u + local < ${count}u) ${text}`;
    }).join("\n      ");

  return {
    rows,
    columns,
    localRows: 4,
    quads,
    paddedQuads: [productQuads, width],
    prelude: "",
    declarations: `
var<workgroup> stage: array<vec4f, ${stageLength}>;
var<workgroup> weights: array<vec4f, ${rows * columns / 4}>;`,
    open: `
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let tx = local % ${across}u;
  let ty = local / ${across}u;`,
    row: (i) => `(firstRow + ty * 4u + ${i}u)`,
    heldColumns: "(vec4u(firstColumn + tx) + vec4u(0u, 8u, 16u, 24u))",
    quad: (j) => `(${j * across}u + tx)`,
    product: (name, row, column) => `
    ${upTo(4).map((i) => `var ${name}${i} = vec4f();`).join(" ")}
    for (var quad = 0u; quad < ${productQuads}u; quad += 4u) {
      workgroupBarrier();
      ${
      stage(rows * 4, (i) =>
        `stage[${i} / 4u * ${line}u + ${i} % 4u] = ${row(`firstRow + ${i} / 4u`, `quad + ${i} % 4u`)};`)
    }
      ${
      stage(columns * 4, (i) =>
        `stage[${rows * line}u + ${i} / 4u * ${line}u + ${i} % 4u] = ${
          column(`firstColumn + ${i} / 4u`, `quad + ${i} % 4u`)
        };`)
    }
      workgroupBarrier();
      ${
      upTo(4).map((p) =>
        `{ ${upTo(4).map((c) => `let c${c} = stage[${(rows + c * across) * line + p}u + tx * ${line}u];`).join(" ")}
      ${
          upTo(4).map((i) =>
            `{ let r = stage[(ty * 4u + ${i}u) * ${line}u + ${p}u]; ` +
            `${name}${i} += vec4f(${upTo(4).map((c) => `dot(r, c${c})`).join(", ")}); }`
          ).join("\n      ")
        } }`
      ).join("\n      ")
    }
    }`,
    // A tile's vec4f holds the columns u, u + 8, u + 16, u + 24: columns are staged in that order.
    weigh: (sum, name, column) => `
    workgroupBarrier();
    ${upTo(4).map((i) => `weights[(ty * 4u + ${i}u) * ${across}u + tx] = ${name}${i};`).join(" ")}
    for (var first = 0u; first < ${across}u; first += ${together}u) {
      workgroupBarrier();
      ${
      stage(together * 4 * width, (i) =>
        `let t = ${i} / ${width}u; stage[${i}] = ${
          column("firstColumn + first + t / 4u + t % 4u * 8u", `${i} % ${width}u`)
        };`)
    }
      workgroupBarrier();
      ${
      upTo(together).map((u) =>
        `{ ${upTo(4).map((i) => `let w${i} = weights[(ty * 4u + ${i}u) * ${across}u + first + ${u}u];`).join(" ")}
      ${
          upTo(4).map((c) =>
            `{ ${upTo(quads).map((j) => `let c${j} = stage[${(u * 4 + c) * width + j * across}u + tx];`).join(" ")} ${
              upTo(4).flatMap((i) =>
                upTo(quads).map((j) => `${sum}${i}_${j} = fma(vec4f(w${i}[${c}]), c${j}, ${sum}${i}_${j});`)
              ).join(" ")
            } }`
          ).join("\n      ")
        } }`
      ).join("\n      ")
    }
    }`,
    merge(name, values, operation) {
      const terms = upTo(across).map((u) => `stage[ty * ${across}u + ${u}u]`);
      const merged = operation === "max" ? terms.reduce((a, b) => `max(${a}, ${b})`) : terms.join(" + ");
      return `
    workgroupBarrier();
    stage[local] = vec4f(${values.join(", ")});
    workgroupBarrier();
    let ${name} = ${merged};
    ${upTo(4).map((i) => `let ${name}${i} = ${name}[${i}];`).join(" ")}`;
    },
  };
}
