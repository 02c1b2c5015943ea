/**
 * The sum of gradients that flows back into a table: rows of dY by id. The host has put the tokens of each id together
 * (`groups.ts`), so each row of dY is read once and each row of the table that is looked up is read and written once, in
 * one dispatch.
 *
 * An invocation sums a column of a group in the order of its tokens. It takes several groups and asks for the first row
 * of each, and for what is in the table, before it adds anything. Groups too long for that are summed by workgroups, whose
 * rows of invocations take every so many tokens each; they come first, since they take longest. In software there is no
 * such thing as too long: the processors are few, and a workgroup's memory is as slow as any.
 */
import type { FloatType } from "../host.ts";
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { vectorPrelude } from "../norm/rows.ts";
import { storage } from "../storage.ts";
import { groupsLength, longGroup } from "./groups.ts";

export interface GradientSizes {
  readonly tokens: number;
  /** Rows of the table. */
  readonly vocabulary: number;
  readonly columns: number;
  /** Id of the table's first row. */
  readonly firstRow: number;
  readonly type: FloatType;
}

/** What decides how quick it is. Sums are others with other `lanes`, `across` and `hugeAcross`. */
export interface GradientForm {
  /** Groups of an invocation. */
  readonly each: number;
  /** Rows of dY that an invocation asks for at once. */
  readonly ahead: number;
  /** Invocations of a workgroup; a power of two. */
  readonly lanes: number;
  /** Workgroups at most that take long groups, by turns; none: all groups are alike. */
  readonly longs: number;
  /** Vectors of columns of a long group, and of a huge one, that a workgroup has; powers of two. */
  readonly across: number;
  readonly hugeAcross: number;
}

export const gradientForm = ({ software }: Pick<DeviceTraits, "software">): GradientForm => ({
  each: software ? 1 : 4,
  ahead: software ? 1 : 4,
  lanes: 256,
  longs: software ? 0 : 1024,
  across: 8,
  hugeAcross: 2,
});

export const gradientOperands = ({ tokens, vocabulary, columns, type }: GradientSizes): readonly Operand[] => [
  { name: "groups", type: "u32", length: groupsLength(tokens), access: "read" },
  { name: "dY", type, length: tokens * columns, access: "read" },
  { name: "dTable", type: "f32", length: vocabulary * columns, access: "update" },
];

const upTo = (count: number) => Array.from({ length: count }, (_, k) => k);

export function gradientPasses(
  traits: DeviceTraits,
  sizes: GradientSizes,
  form: GradientForm = gradientForm(traits),
): readonly Pass[] {
  const { tokens, vocabulary, columns, firstRow } = sizes, { each, ahead, lanes, across, hugeAcross } = form;
  const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
  const { directives, bindings, load, bound } = storage(
    traits,
    gradientOperands(sizes),
    { dY: "V", dTable: "V" },
    width,
    ["dY"],
  );
  const slices = Math.ceil(vectors / across), hugeSlices = Math.ceil(vectors / hugeAcross);
  const longs = Math.min(form.longs, Math.floor(tokens / (longGroup + 1)) * hugeSlices);
  const slots = Math.ceil(tokens / each), [x, y] = spread(longs + Math.ceil(slots * vectors / lanes));
  /** Adds the rows of tokens `at`, `at + step`… up to `end`, as many as are asked for at once. */
  const add = (step: string) =>
    upTo(ahead).map((k) => {
      const place = k === 0 ? "at" : `at + ${k}u * ${step}`;
      const read = `{ let row = tokenAt(${place}) * ${vectors}u + c; term${k} = ${load("dY", "row")}; }`;
      return `var term${k} = V(); ${k === 0 ? read : `if (${place} < end) ${read}`}`;
    }).join("\n      ") + `
      ${
      upTo(ahead).map((k) => k === 0 ? "sum += term0;" : `if (at + ${k}u * ${step} < end) { sum += term${k}; }`).join(
        " ",
      )
    }`;

  const code = `${directives}${vectorPrelude(width)}
${bindings}
const tokens = ${tokens}u;
fn tokenAt(place: u32) -> u32 { return min(groups[3u + min(place, tokens - 1u)], tokens - 1u); }
fn rowOf(group: u32) -> u32 { return groups[3u + tokens + group]${firstRow === 0 ? "" : ` - ${firstRow}u`}; }
fn beginOf(group: u32) -> u32 { return min(groups[3u + 2u * tokens + group], tokens); }
${longs > 0 ? longText() : ""}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let own = group.y * ${x}u + group.x;
  let long = ${form.longs > 0 ? "min(groups[1], tokens)" : "0u"};
  ${longs > 0 ? `if (own < ${longs}u) { sumLong(own, local, long); return; }` : ""}
  let i = (own - ${longs}u) * ${lanes}u + local;
  let slot = i / ${vectors}u;
  let c = i % ${vectors}u;
  if (slot >= ${slots}u) { return; }
  let count = min(groups[2], tokens);
  ${
    upTo(each).map((k) => `
  let group${k} = long + slot + ${k * slots}u;
  let place${k} = min(group${k}, tokens - 1u);
  let row${k} = rowOf(place${k});
  let begin${k} = beginOf(place${k});
  let end${k} = beginOf(place${k} + 1u);
  let first${k} = tokenAt(begin${k}) * ${vectors}u + c;
  let here${k} = group${k} < count && row${k} < ${vocabulary}u;`).join("")
  }
  ${
    upTo(each).map((k) => `
  var old${k} = V();
  var sum${k} = V();
  if (here${k}) { old${k} = dTable[row${k} * ${vectors}u + c]; sum${k} = ${load("dY", `first${k}`)}; }`).join("")
  }
  ${
    upTo(each).map((k) => `
  if (here${k}) {
    let end = end${k};
    var sum = sum${k};
    for (var at = begin${k} + 1u; at < end; at += ${ahead}u) {
      ${add("1u")}
    }
    dTable[row${k} * ${vectors}u + c] = old${k} + sum;
  }`).join("")
  }
}
`;
  return [{ code, workgroups: [x, y, 1], ...bound([0, 1, 2]) }];

  function longText(): string {
    return `
var<workgroup> shares: array<V, ${lanes}>;
fn sumLong(own: u32, local: u32, long: u32) {
  let huge = min(groups[0], long);
  let hugeItems = huge * ${hugeSlices}u;
  let items = hugeItems + (long - huge) * ${slices}u;
  for (var item = own; item < items; item += ${longs}u) {
    let isHuge = item < hugeItems;
    let part = select(item - hugeItems, item, isHuge);
    let slices = select(${slices}u, ${hugeSlices}u, isHuge);
    let across = select(${across}u, ${hugeAcross}u, isHuge);
    let down = select(${lanes / across}u, ${lanes / hugeAcross}u, isHuge);
    let group = select(huge, 0u, isHuge) + part / slices;
    let row = rowOf(group);
    let column = part % slices * across + local % across;
    let c = min(column, ${vectors - 1}u);
    let begin = beginOf(group);
    let end = select(begin, beginOf(group + 1u), row < ${vocabulary}u);
    let writes = local < across && column < ${vectors}u && row < ${vocabulary}u;
    var old = V();
    if (writes) { old = dTable[row * ${vectors}u + c]; }
    var sum = V();
    for (var at = begin + local / across; at < end; at += ${ahead}u * down) {
      ${add("down")}
    }
    shares[local] = sum;
    workgroupBarrier();
    for (var half = ${lanes / 2}u; half >= across; half /= 2u) {
      if (local < half) { shares[local] += shares[local + half]; }
      workgroupBarrier();
    }
    if (writes) { dTable[row * ${vectors}u + c] = old + shares[local]; }
    workgroupBarrier();
  }
}`;
  }
}
