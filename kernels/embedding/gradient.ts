/**
 * The sum of gradients that flows back into a table: rows of dY by id. Tokens are sorted by id (`sort.ts`), so that each row
 * of dY is read once and each row of the table that is looked up is read and written once, wherever its tokens are.
 *
 * A workgroup has a chunk of sorted tokens, whatever their ids, so texts that are a word's over and over take no longer than
 * others. The tokens of one id are summed in order by the workgroup in whose chunk the first one is; where they are many they
 * are cut at the chunks' ends, and a last pass adds the parts, in an order that only the ids decide.
 */
import type { FloatType } from "../host.ts";
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { vectorPrelude } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { mostPairwise, sortPasses, sortScratch, type SortSizes } from "./sort.ts";

export interface GradientSizes extends SortSizes {
  readonly columns: number;
  readonly type: FloatType;
}

/** What decides how quick it is; `chunk` decides the order of sums too, so it depends on the sizes alone. */
export interface GradientForm {
  /** Sorted tokens of a workgroup, even; ids that occur more often may be cut. */
  readonly chunk: number;
  /** Rows of dY that an invocation asks for at once. */
  readonly ahead: number;
  /** Most invocations of a workgroup. */
  readonly lanes: number;
  /** Most tokens that are sorted by looking at all pairs. */
  readonly pairwise: number;
}

export const gradientForm = (_sizes: GradientSizes): GradientForm => ({
  chunk: 32,
  ahead: 8,
  lanes: 256,
  pairwise: mostPairwise,
});

export function gradientOperands(sizes: GradientSizes, { chunk, pairwise } = gradientForm(sizes)): readonly Operand[] {
  const { tokens, vocabulary, columns, type } = sizes;
  return [
    { name: "ids", type: "u32", length: tokens, access: "read" },
    { name: "dY", type, length: tokens * columns, access: "read" },
    { name: "dTable", type: "f32", length: vocabulary * columns, access: "update" },
    { name: "sorted", type: "u32", length: 2 * tokens, access: "scratch" },
    // Of each chunk: what goes on from before, and what goes on behind.
    { name: "parts", type: "f32", length: 2 * Math.ceil(tokens / chunk) * columns, access: "scratch" },
    ...sortScratch(sizes, pairwise),
  ];
}

export function gradientPasses(
  traits: DeviceTraits,
  sizes: GradientSizes,
  form: GradientForm = gradientForm(sizes),
): readonly Pass[] {
  const operands = gradientOperands(sizes, form);
  return [
    ...sortPasses(traits, sizes, [0, 3, ...operands.keys().drop(5)], form.pairwise),
    chunkPass(traits, sizes, form, operands),
    ...(sizes.tokens > form.chunk ? [partPass(traits, sizes, form, operands)] : []),
  ];
}

const reading = (operand: Operand): Operand => ({ ...operand, access: "read" });
const layOut = ({ columns }: GradientSizes) => {
  const width = columns % 4 === 0 ? 4 : 1;
  return { width, vectors: columns / width } as const;
};

/** Sums within chunks: into the table where they are whole, else into parts. */
function chunkPass(
  traits: DeviceTraits,
  sizes: GradientSizes,
  { chunk, ...form }: GradientForm,
  operands: readonly Operand[],
): Pass {
  const { tokens, vocabulary } = sizes, { width, vectors } = layOut(sizes), half = chunk / 2;
  const ahead = traits.software ? 1 : form.ahead, unit = traits.software ? 8 : 32;
  const slices = Math.ceil(vectors / form.lanes), lanes = Math.ceil(vectors / slices / unit) * unit;
  const chunks = Math.ceil(tokens / chunk), [x, y] = spread(chunks);
  const [, dY, dTable, sorted, parts] = operands as [Operand, Operand, Operand, Operand, Operand];
  const { directives, bindings, load, bound } = storage(
    traits,
    [dY, dTable, reading(sorted), parts],
    { dY: "V", dTable: "V", parts: "V" },
    width,
    ["dY"],
  );
  const upTo = Array.from({ length: ahead }, (_, k) => k);
  const code = `${directives}${vectorPrelude(width)}
${bindings}
const none = 0xffffffffu;
var<workgroup> ids: array<u32, ${2 * chunk + 1}>; // from half a chunk before to half a chunk behind
var<workgroup> rows: array<u32, ${chunk + half}>;
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let own = group.y * ${x}u + group.x;
  if (own >= ${chunks}u) { return; }
  let start = own * ${chunk}u;
  for (var i = local; i < ${2 * chunk + 1}u; i += ${lanes}u) {
    let at = start + i - ${half}u; // before all it is huge
    ids[i] = select(none, sorted[min(at, ${tokens - 1}u)], at < ${tokens}u);
    if (i >= ${half}u && i < ${2 * chunk}u) { rows[i - ${half}u] = sorted[${tokens}u + min(at, ${tokens - 1}u)]; }
  }
  workgroupBarrier();
  let c = group.z * ${lanes}u + local;
  if (c >= ${vectors}u) { return; }
  var begin = 0u;
  let first = ids[${half}u];
  let goesOn = ids[${half - 1}u] == first;
  // A sum is cut where half a chunk more of its id is on either side; else the workgroup where it begins ends it.
  var cut = goesOn && (ids[0] == first || ids[${chunk}u] == first);
  if (goesOn && !cut) { while (ids[${half}u + begin] == first) { begin += 1u; } }
  var end = min(${chunk}u, ${tokens}u - start);
  let last = ids[${half - 1}u + end];
  let endless = end == ${chunk}u && ids[${half + chunk}u] == last;
  let cutBehind = endless && (ids[${chunk}u] == last || ids[${2 * chunk}u] == last);
  if (endless && !cutBehind) { while (ids[${half}u + end] == last) { end += 1u; } }
  if (begin >= end) { return; }
  var id = ids[${half}u + begin];
  var sum = V();
  for (var at = begin; at < end; at += ${ahead}u) {
    ${
    upTo.map((k) => {
      const place = k === 0 ? "at" : `min(at + ${k}u, end - 1u)`;
      return `let row${k} = rows[${place}] * ${vectors}u + c; let term${k} = ${load("dY", `row${k}`)};`;
    }).join("\n    ")
  }
    ${
    upTo.map((k) => {
      const guarded = k === 0 ? "" : `if (at + ${k}u < end) `;
      return `${guarded}{ let next = ids[${half}u + at + ${k}u]; if (next != id) {
      if (cut) { parts[own * ${
        2 * vectors
      }u + c] = sum; } else if (id < ${vocabulary}u) { dTable[id * ${vectors}u + c] += sum; }
      id = next; sum = V(); cut = false; } sum += term${k}; }`;
    }).join("\n    ")
  }
  }
  if (cut || cutBehind) { parts[(own * 2u + select(1u, 0u, cut)) * ${vectors}u + c] = sum; }
  else if (id < ${vocabulary}u) { dTable[id * ${vectors}u + c] += sum; }
}
`;
  const { operands: bindingsOf, images } = bound([1, 2, 3, 4]);
  return {
    code,
    workgroups: [x, y, slices],
    operands: bindingsOf,
    ...(images && { images }),
  };
}

/** Parts to sums: the workgroup of the chunk in which one begins. Lanes have every fourth part each. */
function partPass(
  traits: DeviceTraits,
  sizes: GradientSizes,
  { chunk }: GradientForm,
  operands: readonly Operand[],
): Pass {
  const { tokens, vocabulary } = sizes, { width, vectors } = layOut(sizes), half = chunk / 2;
  const lanes = 4, across = 64, size = lanes * across, ahead = traits.software ? 1 : 8;
  const chunks = Math.ceil(tokens / chunk), [x, y] = spread(chunks);
  const [, , dTable, sorted, parts] = operands as [Operand, Operand, Operand, Operand, Operand];
  const { bindings, bound } = storage(
    traits,
    [dTable, reading(sorted), reading(parts)],
    { dTable: "V", parts: "V" },
    width,
  );
  const upTo = Array.from({ length: ahead }, (_, k) => k);
  const code = `${vectorPrelude(width)}
${bindings}
var<workgroup> further: atomic<u32>;
var<workgroup> sums: array<V, ${size}>;
@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let own = group.y * ${x}u + group.x;
  let end = (own + 1u) * ${chunk}u;
  if (end >= ${tokens}u) { return; }
  let id = sorted[end];
  if (id >= ${vocabulary}u || sorted[end - 1u] != id) { return; }
  if (own > 0u && sorted[end - ${chunk + 1}u] == id) { return; } // it begins before
  if (sorted[end - ${half}u] != id && (end + ${half}u >= ${tokens}u || sorted[min(end + ${half}u, ${
    tokens - 1
  }u)] != id)) { return; }
  for (var part = own + 1u + local; part < ${chunks}u; part += ${size}u) {
    if (sorted[part * ${chunk}u] != id) { break; }
    atomicAdd(&further, 1u);
  }
  workgroupBarrier();
  let behind = own + 1u + atomicLoad(&further);
  let lane = local / ${across}u;
  let c = group.z * ${across}u + local % ${across}u;
  var sum = V();
  if (c < ${vectors}u) {
    for (var part = own + 1u + lane; part < behind; part += ${lanes * ahead}u) {
      ${
    upTo.map((k) => {
      const place = k === 0 ? "part" : `min(part + ${k * lanes}u, behind - 1u)`;
      return `let term${k} = parts[${place} * ${2 * vectors}u + c];`;
    }).join("\n      ")
  }
      ${
    upTo.map((k) => k === 0 ? "sum += term0;" : `if (part + ${k * lanes}u < behind) { sum += term${k}; }`).join(" ")
  }
    }
  }
  sums[local] = sum;
  workgroupBarrier();
  if (lane > 0u || c >= ${vectors}u) { return; }
  sum = parts[(own * 2u + 1u) * ${vectors}u + c];
  ${Array.from({ length: lanes }, (_, k) => `sum += sums[local + ${k * across}u];`).join(" ")}
  dTable[id * ${vectors}u + c] += sum;
}
`;
  const { operands: bindingsOf } = bound([2, 3, 4]);
  return { code, workgroups: [x, y, Math.ceil(vectors / across)], operands: bindingsOf };
}
