/**
 * Flash attention (Dao et al. 2022, "FlashAttention"; Dao 2023, "FlashAttention-2"): keys pass by in blocks under an
 * online softmax, so that no more than a block of scores exists at a time. The forward pass keeps the log-sum-exp of
 * each row; the backward pass computes the weights again from it, once by blocks of queries for dQ and once by blocks of
 * keys for dK and dV, so that each sum has one owner: no atomics, the same bits every time.
 *
 * Segments are contiguous and `start` does not decrease, so a block of queries needs the keys from its first token's
 * `start`, a block of keys the queries up to its last token's `end`: what lies outside is never visited.
 */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { upTo } from "../matmul/text.ts";
import { float } from "../norm/rows.ts";
import { type Storage, storage } from "../storage.ts";
import type { BlockForm, Load } from "./block_form.ts";
import { unlessByPairs } from "./rounds.ts";
import type { AttentionShape } from "./shape.ts";

/** Scores are kept times log₂e, since `exp2` is the native one. */
const log2e = Math.LOG2E;

/** q, k, v, start → o, logSumExp. */
export function forwardPass(
  form: BlockForm,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass {
  const { tokens, heads } = shape;
  const text = textOf(form, shape, operands, traits, ["q", "k", "v", "start", "o", "logSumExp"]);
  const { rows, sums } = text;
  const code = `
${text.open(heads)}
  let kvHead = head / ${heads / shape.kvHeads}u;
  let firstRow = (${text.blocks - 1}u - block) * ${form.rows}u; // the longest first
  ${rows((i) => `let row${i} = ${form.row(i)}; let start${i} = vec4u(start[min(row${i}, ${tokens - 1}u)]);`)}
  ${rows((i) => `var largest${i} = -1e30f; var total${i} = 0f;`)}
  ${sums((i, j) => `var o${i}_${j} = vec4f();`)}
  let finish = min(firstRow + ${form.rows}u, ${tokens}u);
  for (var firstColumn = start[firstRow]; firstColumn < finish; firstColumn += ${form.columns}u) {
    ${form.product("s", text.load("q", "head"), text.load("k", "kvHead"))}
    let columns = ${form.heldColumns};
    ${rows((i) => `let seen${i} = (columns >= start${i}) & (columns <= vec4u(row${i}));`)}
    ${rows((i) => `s${i} = select(vec4f(-1e30f), s${i} * ${float(shape.scale * log2e)}, seen${i});`)}
    ${form.merge("top", upTo(form.localRows).map((i) => `max(max(s${i}.x, s${i}.y), max(s${i}.z, s${i}.w))`), "max")}
    ${
    rows((i) =>
      `{
      let larger = max(largest${i}, top${i});
      let shrink = exp2(largest${i} - larger);
      s${i} = select(vec4f(), exp2(s${i} - larger), seen${i}); // a row may see nothing of this block
      total${i} = total${i} * shrink + (s${i}.x + s${i}.y) + (s${i}.z + s${i}.w);
      largest${i} = larger;
      ${upTo(form.quads).map((j) => `o${i}_${j} *= shrink;`).join(" ")}
    }`
    )
  }
    ${form.weigh("o", "s", text.load("v", "kvHead"))}
  }
  ${form.merge("sum", upTo(form.localRows).map((i) => `total${i}`), "add")}
  ${sums((i, j) => `store_o(row${i}, head, ${form.quad(j)}, o${i}_${j} / sum${i});`)}
  if (${form.quad(0)} == 0u) {
    ${
    rows((i) =>
      `if (row${i} < ${tokens}u) { logSumExp[row${i} * ${heads}u + head] = (largest${i} + log2(sum${i})) * ${
        float(Math.LN2)
      }; }`
    )
  }
  }
}
`;
  return text.pass(code, heads, ["q", "k", "v"], ["o"]);
}

/**
 * o, dO, logSumExp, start, end → rowData: what the backward passes need of a token and head, in one vector of words:
 * log-sum-exp (times log₂e) and rowsum(dO·o) as bits of floats, start, end.
 */
export function rowDataPass(shape: AttentionShape, operands: readonly Operand[], traits: DeviceTraits): Pass {
  const { tokens, heads, headDim } = shape;
  const names = ["o", "dO", "logSumExp", "start", "end", "rowData"];
  const places = placesOf(operands, names);
  const total = tokens * heads, width = headDim % 4 === 0 ? 4 : 1, count = headDim / width;
  const element = width === 4 ? "vec4f" : "f32";
  const { directives, bindings, load, bound } = storage(
    traits,
    places.map((place) => operands[place]),
    { o: element, dO: element, rowData: "vec4u" },
    1,
    ["o", "dO"],
  );
  // A row is an invocation's; where memory is read side by side, its products are made by others, as they lie.
  const apart = !traits.software && width === 4;
  const rows = apart && count > 32 ? 32 : 64, line = count + 1, workgroups = spread(Math.ceil(total / rows));
  const product = (at: string) => `${load("o", at)} * ${load("dO", at)}`;
  const sum = apart
    ? `
  ${
      upTo(Math.ceil(rows * count / 64)).map((r) => {
        const own = `${r * 64}u + local`;
        const whole = (r + 1) * 64 <= rows * count;
        return `${whole ? "" : `if (${own} < ${rows * count}u) `}{ let at = min(first * ${count}u + ${own}, ${
          total * count - 1
        }u); ` +
          `parts[(${own}) / ${count}u * ${line}u + (${own}) % ${count}u] = dot(${load("o", "at")}, ${
            load("dO", "at")
          }); }`;
      }).join("\n  ")
    }
  workgroupBarrier();
  if (local >= ${rows}u || i >= ${total}u) { return; }
  var delta = parts[local * ${line}u];
  ${upTo(count).slice(1).map((c) => `delta += parts[local * ${line}u + ${c}u];`).join(" ")}`
    : `
  if (i >= ${total}u) { return; }
  var sum = ${element}();
  ${upTo(count).map((c) => `sum += ${product(`i * ${count}u + ${c}u`)};`).join("\n  ")}
  let delta = ${width === 4 ? "(sum.x + sum.y) + (sum.z + sum.w)" : "sum"};`;
  const code = `${directives}
${bindings}
${apart ? `var<workgroup> parts: array<f32, ${rows * line}>;` : ""}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let first = (group.y * ${workgroups[0]}u + group.x) * ${rows}u;
  let i = first + local;
  ${sum}
  let token = i / ${heads}u;
  rowData[i] = vec4u(bitcast<u32>(logSumExp[i] * ${float(log2e)}), bitcast<u32>(delta), start[token], end[token]);
}
`;
  return { code, workgroups, ...bound(places) };
}

/**
 * q, k, v, dO, rowData → dQ.
 *
 * @param otherwise reads `pairs` too, and does nothing where their passes do it
 */
export function queryGradientPass(
  form: BlockForm,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  otherwise = false,
): Pass {
  const { tokens, heads, scale } = shape;
  const names = ["q", "k", "v", "dO", "rowData", ...(otherwise ? ["pairs"] : []), "dQ"];
  const text = textOf(form, shape, operands, traits, names);
  const { rows, sums } = text;
  const code = `
${text.open(heads)}
  let kvHead = head / ${heads / shape.kvHeads}u;
  let firstRow = (${text.blocks - 1}u - block) * ${form.rows}u;
  ${
    rows((i) =>
      `let row${i} = ${form.row(i)}; let data${i} = rowData[min(row${i}, ${tokens - 1}u) * ${heads}u + head]; ` +
      `let lse${i} = bitcast<f32>(data${i}.x); let delta${i} = bitcast<f32>(data${i}.y);`
    )
  }
  ${sums((i, j) => `var dQ${i}_${j} = vec4f();`)}
  let finish = min(firstRow + ${form.rows}u, ${tokens}u);
  for (var firstColumn = rowData[firstRow * ${heads}u + head].z; firstColumn < finish; firstColumn += ${form.columns}u) {
    ${form.product("s", text.load("q", "head"), text.load("k", "kvHead"))}
    ${form.product("d", text.load("dO", "head"), text.load("v", "kvHead"))}
    let columns = ${form.heldColumns};
    ${
    rows((i) =>
      `{
      let seen = (columns >= vec4u(data${i}.z)) & (columns <= vec4u(row${i}));
      s${i} = select(vec4f(), exp2(s${i} * ${float(scale * log2e)} - lse${i}), seen) * (d${i} - delta${i});
    }`
    )
  }
    ${form.weigh("dQ", "s", text.load("k", "kvHead"))}
  }
  ${sums((i, j) => `store_dQ(row${i}, head, ${form.quad(j)}, dQ${i}_${j} * ${float(scale)});`)}
}
`;
  return text.pass(code, heads, ["q", "k", "v", "dO"], ["dQ"]);
}

/** q, k, [v], dO, rowData → dK, dV or one of them: rows are keys here, columns the queries of every head of the group. */
export function keyGradientPass(
  form: BlockForm,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  gradients: readonly ("dK" | "dV")[],
  otherwise = false,
): Pass {
  const { tokens, heads, kvHeads, scale } = shape;
  const wantsK = gradients.includes("dK"), wantsV = gradients.includes("dV");
  const inputs = ["q", "k", ...(wantsK ? ["v"] : []), "dO"];
  const text = textOf(form, shape, operands, traits, [
    ...inputs,
    "rowData",
    ...(otherwise ? ["pairs"] : []),
    ...gradients,
  ]);
  const { rows, sums } = text;
  const group = heads / kvHeads;
  const data = upTo(4).map((c) => `let data${c} = rowData[min(columns[${c}], ${tokens - 1}u) * ${heads}u + head];`);
  const gather = (type: string, component: string, wrap = (text: string) => text) =>
    `${type}(${upTo(4).map((c) => wrap(`data${c}.${component}`)).join(", ")})`;
  const float32 = (text: string) => `bitcast<f32>(${text})`;
  const code = `
${text.open(kvHeads, "kvHead")}
  let firstRow = block * ${form.rows}u;
  let lastRow = min(firstRow + ${form.rows}u, ${tokens}u) - 1u;
  ${rows((i) => `let row${i} = ${form.row(i)};`)}
  ${gradients.map((name) => sums((i, j) => `var ${name}${i}_${j} = vec4f();`)).join("\n  ")}
  for (var head = kvHead * ${group}u; head < (kvHead + 1u) * ${group}u; head++) {
  let finish = min(rowData[lastRow * ${heads}u + head].w, ${tokens}u);
  for (var firstColumn = firstRow; firstColumn < finish; firstColumn += ${form.columns}u) {
    ${form.product("s", text.load("k", "kvHead"), text.load("q", "head"))}
    let columns = ${form.heldColumns};
    ${data.join("\n    ")}
    let begins = ${gather("vec4u", "z")};
    let lse = ${gather("vec4f", "x", float32)};
    ${
    rows((i) =>
      `{
      let seen = (columns >= vec4u(row${i})) & (begins <= vec4u(row${i})) & (columns < vec4u(${tokens}u));
      s${i} = select(vec4f(), exp2(s${i} * ${float(scale * log2e)} - lse), seen);
    }`
    )
  }
    ${wantsV ? form.weigh("dV", "s", text.load("dO", "head")) : ""}
    ${
    wantsK
      ? `
    ${form.product("d", text.load("v", "kvHead"), text.load("dO", "head"))}
    let delta = ${gather("vec4f", "y", float32)};
    ${rows((i) => `s${i} *= d${i} - delta;`)}
    ${form.weigh("dK", "s", text.load("q", "head"))}`
      : ""
  }
  }
  }
  ${wantsK ? sums((i, j) => `store_dK(row${i}, kvHead, ${form.quad(j)}, dK${i}_${j} * ${float(scale)});`) : ""}
  ${wantsV ? sums((i, j) => `store_dV(row${i}, kvHead, ${form.quad(j)}, dV${i}_${j});`) : ""}
}
`;
  return text.pass(code, kvHeads, inputs, gradients);
}

/** Parts of a pass's text that depend on the form and the sizes alone. */
function textOf(
  form: BlockForm,
  shape: AttentionShape,
  operands: readonly Operand[],
  traits: DeviceTraits,
  names: readonly string[],
) {
  const { tokens } = shape;
  const places = placesOf(operands, names);
  const blocks = Math.ceil(tokens / form.rows);
  const groups = (heads: number) => spread(blocks * heads);
  return {
    blocks,
    rows: (line: (i: number) => string) => upTo(form.localRows).map(line).join("\n    "),
    sums: (line: (i: number, j: number) => string) =>
      upTo(form.localRows).flatMap((i) => upTo(form.quads).map((j) => line(i, j))).join("\n  "),
    load: (name: string, head: string): Load => (token, quad) => `load_${name}(${token}, ${head}, ${quad})`,
    pass(code: string, heads: number, inputs: readonly string[], outputs: readonly string[]): Pass {
      const element = shape.headDim % 4 === 0 ? "vec4f" : "f32";
      const types = Object.fromEntries([...inputs, ...outputs].map((name) => [name, element]));
      // Scratch is only read in these passes; saying so lets a loop's bounds come from it.
      const bound = places.map((place) => operands[place])
        .map((operand) => operand.access === "scratch" ? { ...operand, access: "read" as const } : operand);
      // Each texel read is text of its own, so heads that are read number by number compile four times as long as images.
      const imaged = element === "vec4f" ? inputs : [];
      const stored = storage(traits, bound, { ...types, rowData: "vec4u" }, 1, imaged);
      const head = `${stored.directives}${form.prelude}${stored.bindings}
${inputs.map((name) => loader(form, shape, stored, name)).join("\n")}
${outputs.map((name) => storer(shape, stored, name)).join("\n")}
${form.declarations}`;
      return { code: head + code, workgroups: groups(heads), ...stored.bound(places) };
    },
    open(heads: number, head = "head") {
      const workgroups = groups(heads), total = blocks * heads;
      const guard = workgroups[1] > 1 ? `if (id >= ${total}u) { return; }` : "";
      return `${form.open}
  ${names.includes("pairs") ? unlessByPairs : ""}
  let id = group.y * ${workgroups[0]}u + group.x;
  ${guard}
  let block = id / ${heads}u;
  let ${head} = id % ${heads}u;`;
    },
  };
}

const headsOf = ({ heads, kvHeads }: AttentionShape, name: string) =>
  ["k", "v", "dK", "dV"].includes(name) ? kvHeads : heads;

/** `load_x(token, head, quad)`: four elements of a head; zeros past its end, the last token's past the last token. */
function loader({ paddedQuads }: BlockForm, shape: AttentionShape, { load }: Storage, name: string): string {
  const { tokens, headDim } = shape, heads = headsOf(shape, name);
  const line = `min(token, ${tokens - 1}u) * ${heads}u + head`;
  const quads = Math.ceil(headDim / 4);
  const guard = paddedQuads.some((padded) => padded > quads) ? `if (quad >= ${quads}u) { return vec4f(); }` : "";
  const body = headDim % 4 === 0 ? `return ${load(name, `(${line}) * ${quads}u + quad`)};` : `
  let base = (${line}) * ${headDim}u + quad * 4u;
  let first = vec2f(${load(name, "base")}, ${load(name, "base + 1u")});
  if (quad == ${quads - 1}u) { return vec4f(first, 0f, 0f); }
  return vec4f(first, ${load(name, "base + 2u")}, ${load(name, "base + 3u")});`;
  return `fn load_${name}(token: u32, head: u32, quad: u32) -> vec4f {
  ${guard}
  ${body}
}`;
}

/** `store_x(token, head, quad, value)`: leaves out what is past the last token or the end of the head. */
function storer(shape: AttentionShape, { store }: Storage, name: string): string {
  const { tokens, headDim } = shape, heads = headsOf(shape, name);
  const quads = Math.ceil(headDim / 4);
  const line = `token * ${heads}u + head`;
  const body = headDim % 4 === 0 ? store(name, `(${line}) * ${quads}u + quad`, "value") : `
  let base = (${line}) * ${headDim}u + quad * 4u;
  ${store(name, "base", "value.x")}
  ${store(name, "base + 1u", "value.y")}
  if (quad == ${quads - 1}u) { return; }
  ${store(name, "base + 2u", "value.z")}
  ${store(name, "base + 3u", "value.w")}`;
  return `fn store_${name}(token: u32, head: u32, quad: u32, value: vec4f) {
  if (token >= ${tokens}u || quad >= ${quads}u) { return; }
  ${body}
}`;
}

function placesOf(operands: readonly Operand[], names: readonly string[]): number[] {
  return names.map((name) => operands.findIndex((operand) => operand.name === name));
}
