/**
 * The form for GPUs: 128 invocations in a grid of 16 x 8 share a block of 64 rows and 32 columns. Operands pass through
 * workgroup memory a slice at a time, the next slice on its way while one is used, so that a head of any size fits the
 * 16 KiB that every device has; the tile of weights goes there once it is known. Lines are padded by a `vec4f`, and
 * weights stored at places that change with the row, which keeps neighbours in different banks.
 *
 * An H200 reaches 26 TFLOP/s forward and backward (4 segments of 2,048 tokens, 16 heads of 64). What limits it is waiting
 * at barriers: rows of 8 for each invocation read less and reach half, with fewer invocations to wait for. Merging rows by
 * shuffles, which spares two barriers, is slower: 4.5 ms forward for 1.3.
 */
import type { DeviceTraits } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import type { BlockForm } from "./block_form.ts";

const columns = 32;
/** Invocations along the columns and the rows. */
const across = 8, down = 16;

/**
 * Blocks of 22 KiB where a device has them.
 *
 * @param localRows of an invocation, at most 4: a text of fewer compiles sooner
 */
export function workgroupBlocks(headDim: number, { limits, software }: DeviceTraits, localRows = 4): BlockForm {
  const rows = down * localRows;
  /** `vec4f` of the head dimension that are staged at once: more mean fewer barriers. */
  const slice = limits.maxComputeWorkgroupStorageSize >= 24 << 10 ? 8 : 4;
  const threads = across * down;
  const line = slice + 1;
  const stageLength = (rows + columns) * line;
  const headQuads = Math.ceil(headDim / 4);
  const quads = Math.ceil(headQuads / across), width = quads * across;
  const productQuads = Math.ceil(headQuads / slice) * slice;
  /** Columns staged at once are four times this: a divisor of 8. */
  const together = [8, 4, 2, 1].find((count) => count * 4 * width <= stageLength)!;
  const own = upTo(localRows);

  /** Text that brings `count` `vec4f` to `stage` in two parts: into registers, and from there to their places. */
  const stage = (names: string, count: number, value: (index: string) => string, place: (index: string) => string) => {
    const rounds = upTo(Math.ceil(count / threads)).map((round) => ({
      name: `${names}${round}`,
      index: `(${round * threads}u + local)`,
      whole: (round + 1) * threads <= count,
    }));
    return {
      load: rounds.map(({ name, index, whole }) =>
        `let ${name} = ${value(whole ? index : `min(${index}, ${count - 1}u)`)};`
      ).join("\n    "),
      store: rounds.map(({ name, index, whole }) =>
        `${whole ? "" : `if (${index} < ${count}u) `}{ stage[${place(index)}] = ${name}; }`
      ).join("\n    "),
    };
  };
  /**
   * Steps that each read what was staged for them. Where they are few they are unrolled, and the next one's operands are
   * asked for before a step begins; many would make a text that takes minutes to compile.
   */
  const steps = (
    count: number,
    step: (part: string) => { load: string; store: string; compute: string },
    alongside = "",
  ) => {
    if (software || count > 2) {
      const { load, store, compute } = step("part");
      return `
    workgroupBarrier();
    ${alongside}
    for (var part = 0u; part < ${count}u; part++) {
    ${load}
    workgroupBarrier();
    ${store}
    workgroupBarrier();
    ${compute}
    }`;
    }
    const parts = upTo(count).map((part) => step(`${part}u`));
    // Names of a step are its own: blocks would end before the next one stores.
    const own = (text: string, part: number) => text.replaceAll("staged", `staged${part}_`);
    return `
    {
    ${own(parts[0]!.load, 0)}${
      parts.map(({ store, compute }, part) => `
    workgroupBarrier();
    ${part === 0 ? alongside : ""}
    ${own(store, part)}
    workgroupBarrier();
    ${parts[part + 1] ? own(parts[part + 1]!.load, part + 1) : ""}
    ${compute}`).join("")
    }
    }`;
  };

  return {
    rows,
    columns,
    localRows,
    quads,
    paddedQuads: [productQuads, width],
    prelude: "",
    // Not `dot`, which compilers end with an addition of its own.
    declarations: `
fn along(r: vec4f, c: vec4f, sum: f32) -> f32 {
  return fma(r.w, c.w, fma(r.z, c.z, fma(r.y, c.y, fma(r.x, c.x, sum))));
}
var<workgroup> stage: array<vec4f, ${stageLength}>;
var<workgroup> weights: array<vec4f, ${rows * columns / 4}>;`,
    open: `
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let tx = local % ${across}u;
  let ty = local / ${across}u;
  let turn = ty % 8u;`,
    row: (i) => `(firstRow + ty + ${i * down}u)`,
    heldColumns: "(vec4u(firstColumn + tx) + vec4u(0u, 8u, 16u, 24u))",
    quad: (j) => `(${j * across}u + tx)`,
    product: (name, row, column) => `
    ${own.map((i) => `var ${name}${i} = vec4f();`).join(" ")}
    ${
      steps(productQuads / slice, (part) => {
        const quad = (i: string) => `${part} * ${slice}u + ${i} % ${slice}u`;
        const place = (i: string) => `${i} / ${slice}u * ${line}u + ${i} % ${slice}u`;
        const left = stage("stagedRow", rows * slice, (i) => row(`firstRow + ${i} / ${slice}u`, quad(i)), place);
        const right = stage(
          "stagedColumn",
          columns * slice,
          (i) => column(`firstColumn + ${i} / ${slice}u`, quad(i)),
          (i) => `${rows * line}u + ${place(i)}`,
        );
        const compute = upTo(slice).map((p) =>
          `{ ${upTo(4).map((c) => `let c${c} = stage[${(rows + c * across) * line + p}u + tx * ${line}u];`).join(" ")}
      ${
            own.map((i) =>
              `{ let r = stage[ty * ${line}u + ${i * down * line + p}u]; ` +
              `${name}${i} = vec4f(${upTo(4).map((c) => `along(r, c${c}, ${name}${i}[${c}])`).join(", ")}); }`
            ).join("\n      ")
          } }`
        ).join("\n      ");
        return { load: `${left.load}\n    ${right.load}`, store: `${left.store}\n    ${right.store}`, compute };
      })
    }`,
    // A tile's vec4f holds the columns u, u + 8, u + 16, u + 24: columns are staged in that order.
    weigh: (sum, name, column) =>
      steps(
        across / together,
        (part) => {
          const first = `${part} * ${together}u`;
          const held = stage(
            "stagedColumn",
            together * 4 * width,
            (i) =>
              column(
                `firstColumn + ${first} + ${i} / ${4 * width}u + ${i} / ${width}u % 4u * 8u`,
                `${i} % ${width}u`,
              ),
            (i) => i,
          );
          const compute = upTo(together).map((u) =>
            `{ let place = ty * ${across}u + ((${first} + ${u}u) ^ turn); ${
              own.map((i) => `let w${i} = weights[place + ${i * down * across}u];`).join(" ")
            }
      ${
              upTo(4).map((c) =>
                `{ ${
                  upTo(quads).map((j) => `let c${j} = stage[${(u * 4 + c) * width + j * across}u + tx];`).join(" ")
                } ${
                  own.flatMap((i) =>
                    upTo(quads).map((j) => `${sum}${i}_${j} = fma(vec4f(w${i}[${c}]), c${j}, ${sum}${i}_${j});`)
                  ).join(" ")
                } }`
              ).join("\n      ")
            } }`
          ).join("\n      ");
          return { ...held, compute };
        },
        own.map((i) => `weights[(ty + ${i * down}u) * ${across}u + (tx ^ turn)] = ${name}${i};`).join(" "),
      ),
    merge(name, values, operation) {
      const terms = upTo(across).map((u) => `stage[ty * ${across}u + ${u}u]`);
      const merged = operation === "max" ? terms.reduce((a, b) => `max(${a}, ${b})`) : terms.join(" + ");
      return `
    workgroupBarrier();
    stage[local] = vec4f(${upTo(4).map((i) => values[i] ?? "0f").join(", ")});
    workgroupBarrier();
    let ${name} = ${merged};
    ${own.map((i) => `let ${name}${i} = ${name}[${i}];`).join(" ")}`;
    },
  };
}
