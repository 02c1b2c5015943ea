/**
 * The sum of gradients that flows back into a table: rows of dY by id. The host has put the tokens of each id together
 * (`groups.ts`), so each row of dY is read once and each row of the table that is looked up is read and written once, in
 * one dispatch.
 *
 * An invocation sums a column of a group in the order of its tokens. It takes several groups and asks for the first row
 * of each, and for what is in the table, before it adds anything. Groups too long for that are summed by workgroups, whose
 * rows of invocations take every so many tokens each: the longer a group, the fewer columns and the more such rows a
 * workgroup has. Those workgroups are the first, since they take longest. In software there is no such thing as too long:
 * the processors are few, and a workgroup's memory is as slow as any.
 */
import { type FloatType, isHalf } from "../host.ts";
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { vectorPrelude } from "../norm/rows.ts";
import { fromTwoWords, storage } from "../storage.ts";
import { groupsLength, headWords, longGroups, longKinds } from "./groups.ts";

export interface GradientSizes {
  readonly tokens: number;
  /** Rows of the table. */
  readonly vocabulary: number;
  readonly columns: number;
  /** Id of the table's first row. */
  readonly firstRow: number;
  readonly type: FloatType;
}

/** What decides how quick it is. Sums of long groups are others with other `lanes` and `across`. */
export interface GradientForm {
  /** Whether 16 bytes of a half type are read at once, where rows are whole ones: eight numbers. Else four numbers are. */
  readonly eights: boolean;
  /** Groups of an invocation, and how many such elements of each row; those lie as far from each other as they can. */
  readonly each: number;
  readonly wide: number;
  /** Rows of dY that an invocation asks for at once, in a group of its own and in a long one. */
  readonly ahead: number;
  readonly longAhead: number;
  /** Invocations of a workgroup; a power of two. */
  readonly lanes: number;
  /** Workgroups at most that take long groups, by turns; none: all groups are alike. */
  readonly longs: number;
  /** Workgroups at most that take the other groups, by turns: a device takes its time to start even those with nothing to do. */
  readonly shorts: number;
  /** Elements of a row that a workgroup has, for groups by each of `longGroups`; powers of two. */
  readonly across: readonly number[];
}

/**
 * On an H200, of many forms that were tried. Few rows at once keep registers few, and so invocations many; where all
 * invocations fit the device at once, each must be quick.
 */
export function gradientForm(
  { software }: Pick<DeviceTraits, "software">,
  { tokens, columns, type }: Pick<GradientSizes, "tokens" | "columns" | "type">,
): GradientForm {
  if (software) {
    return {
      eights: false,
      each: 1,
      wide: 1,
      ahead: 1,
      longAhead: 4,
      lanes: 128,
      longs: 0,
      shorts: Infinity,
      across: [1, 1, 8, 32],
    };
  }
  const common = { longAhead: 4, lanes: 256, longs: 264, shorts: 2112 };
  return tokens * columns > 2 ** 23
    ? { ...common, eights: true, each: 1, wide: 2, ahead: 1, across: [1, isHalf(type) ? 2 : 4, 8, 32] }
    : { ...common, eights: false, each: isHalf(type) ? 1 : 2, wide: 1, ahead: 2, across: [1, 1, 8, 32] };
}

export const gradientOperands = ({ tokens, vocabulary, columns, type }: GradientSizes): readonly Operand[] => [
  { name: "groups", type: "u32", length: groupsLength(tokens), access: "read" },
  { name: "dY", type, length: tokens * columns, access: "read" },
  { name: "dTable", type: "f32", length: vocabulary * columns, access: "update" },
];

const upTo = (count: number) => Array.from({ length: count }, (_, k) => k);

export function gradientPasses(
  traits: DeviceTraits,
  sizes: GradientSizes,
  form: GradientForm = gradientForm(traits, sizes),
): readonly Pass[] {
  const { tokens, vocabulary, columns, firstRow, type } = sizes, { each, ahead, longAhead, lanes, across } = form;
  const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
  // An element of dY is so many vectors of sums, and a row so many elements.
  const half = form.eights && columns % 8 === 0 && isHalf(type) ? type : undefined, parts = half ? 2 : 1;
  const elements = vectors / parts, wide = elements % form.wide === 0 ? form.wide : 1, units = elements / wide;
  const sums = upTo(wide * parts), [read, readText] = half ? fromTwoWords[half] : ["", ""];
  const operands = gradientOperands(sizes).map((operand): Operand =>
    operand.name === "dY" && half ? { ...operand, type: "u32", length: operand.length / 2 } : operand
  );
  const element = half ? "vec4u" : "V";
  const { directives, bindings, load, bound } = storage(traits, operands, { dY: element, dTable: "V" }, width, ["dY"]);
  const vectorOf = (name: string, part: number) => half ? `${read}(${name}.${part === 0 ? "xy" : "zw"})` : name;

  const slices = across.map((each) => Math.ceil(elements / each)), kinds = upTo(longKinds);
  const longs = Math.min(form.longs, Math.floor(tokens / (longGroups(tokens).at(-1)! + 1)) * Math.max(...slices));
  const slots = Math.max(1, Math.min(Math.ceil(tokens / each), Math.floor(form.shorts * lanes / units)));
  const [x, y] = spread(longs + Math.ceil(slots * units / lanes));

  /** Statements about the elements of a row that an invocation has, or about its sums. */
  const elementsOf = (count: number, row: string, text: (w: number, place: string) => string) =>
    upTo(count).map((w) => text(w, `${row}${w === 0 ? "" : ` + ${w * units}u`}`)).join(" ");
  const sumsOf = (text: (sum: number, element: number, part: number) => string, all = sums) =>
    all.map((sum) => text(sum, Math.floor(sum / parts), sum % parts)).join(" ");
  /** Place in the table of a sum whose element of its row is `c`. */
  const target = (row: string, element: number, part: number) => {
    const further = element * units * parts + part;
    return `dTable[${row} * ${vectors}u + ${parts === 1 ? "" : `${parts}u * `}c${
      further === 0 ? "" : ` + ${further}u`
    }]`;
  };
  /** Adds the rows of tokens `at`, `at + step`… up to `end`, as many as are asked for at once. */
  const add = (step: string, ahead: number, wide: number) => {
    const places = upTo(ahead).map((k) => k === 0 ? "at" : `at + ${k}u * ${step}`);
    const reads = places.map((place, k) =>
      `${elementsOf(wide, "", (w) => `var term${k}_${w} = ${element}();`)} ${k === 0 ? "" : `if (${place} < end) `}{ ` +
      `let row = tokenAt(${place}) * ${elements}u + c; ${
        elementsOf(wide, "row", (w, place) => `let own${w} = ${place}; term${k}_${w} = ${load("dY", `own${w}`)};`)
      } }`
    );
    const adds = places.map((place, k) => {
      const all = sumsOf((sum, w, part) => `sum${sum} += ${vectorOf(`term${k}_${w}`, part)};`, upTo(wide * parts));
      return k === 0 ? all : `if (${place} < end) { ${all} }`;
    });
    return [...reads, ...adds].join("\n      ");
  };

  const code = `${directives}${vectorPrelude(width)}
${bindings}
${readText}
const tokens = ${tokens}u;
fn tokenAt(place: u32) -> u32 { return min(groups[${headWords}u + min(place, tokens - 1u)], tokens - 1u); }
fn rowOf(group: u32) -> u32 { return groups[${headWords}u + tokens + group]${firstRow === 0 ? "" : ` - ${firstRow}u`}; }
fn shortGroups() -> u32 { return min(groups[${longKinds}] - groups[${longKinds - 1}], tokens); }
fn beginOf(group: u32) -> u32 { return min(groups[${headWords}u + 2u * tokens + group], tokens); }
${longs > 0 ? longText() : ""}
@compute @workgroup_size(${lanes})
fn main(@builtin(workgroup_id) workgroup: vec3u, @builtin(local_invocation_index) local: u32) {
  let own = workgroup.y * ${x}u + workgroup.x;
  ${longs > 0 ? `if (own < ${longs}u) { sumLong(own, local); return; }` : ""}
  let i = (own - ${longs}u) * ${lanes}u + local;
  let slot = i / ${units}u;
  let c = i % ${units}u;
  if (slot >= ${slots}u) { return; }
  let count = ${form.longs > 0 ? "shortGroups()" : `groups[${longKinds}]`};
  ${each * slots < tokens ? `for (var group = slot; group < count; group += ${each * slots}u)` : "let group = slot;"} {
  ${
    upTo(each).map((k) => `
    let place${k} = min(group + ${k * slots}u, tokens - 1u);
    let row${k} = rowOf(place${k});
    let begin${k} = beginOf(place${k});
    let end${k} = beginOf(place${k} + 1u);
    let first${k} = tokenAt(begin${k}) * ${elements}u + c;
    let here${k} = group + ${k * slots}u < count && row${k} < ${vocabulary}u;`).join("")
  }
  ${
    upTo(each).map((k) => `
    ${elementsOf(wide, "", (w) => `var one${k}_${w} = ${element}();`)}
    ${sumsOf((sum) => `var old${k}_${sum} = V();`)}
    if (here${k}) {
      ${elementsOf(wide, `first${k}`, (w, place) => `let own${w} = ${place}; one${k}_${w} = ${load("dY", `own${w}`)};`)}
      ${sumsOf((sum, w, part) => `old${k}_${sum} = ${target(`row${k}`, w, part)};`)}
    }`).join("")
  }
  ${
    upTo(each).map((k) => `
    if (here${k}) {
      let end = end${k};
      ${sumsOf((sum, w, part) => `var sum${sum} = ${vectorOf(`one${k}_${w}`, part)};`)}
      for (var at = begin${k} + 1u; at < end; at += ${ahead}u) {
        ${add("1u", ahead, wide)}
      }
      ${sumsOf((sum, w, part) => `${target(`row${k}`, w, part)} = old${k}_${sum} + sum${sum};`)}
    }`).join("")
  }
  }
}
`;
  return [{ code, workgroups: [x, y, 1], ...bound([0, 1, 2]) }];

  function longText(): string {
    const own = upTo(parts),
      share = (place: string, part: number) => `shares[${place}${part === 0 ? "" : ` + ${lanes}u`}]`;
    const each = (text: (part: number) => string) => own.map(text).join(" ");
    return `
var<workgroup> shares: array<V, ${lanes * parts}>;
fn sumLong(own: u32, local: u32) {
  let short = shortGroups();
  ${
      kinds.map((kind) => `
  let count${kind} = ${kind === 0 ? "" : `max(count${kind - 1}, `}min(groups[${kind}], tokens)${kind === 0 ? "" : ")"};
  let items${kind} = ${
        kind === 0
          ? `count0 * ${slices[0]}u`
          : `items${kind - 1} + (count${kind} - count${kind - 1}) * ${slices[kind]}u`
      };`).join("")
    }
  for (var item = own; item < items${kinds.at(-1)}; item += ${longs}u) {
    var across = 0u;
    var slices = 1u;
    var first = 0u; // group of its kind
    var before = 0u; // items of the kinds before
    ${
      kinds.toReversed().map((kind) =>
        `if (item < items${kind}) { across = ${across[kind]}u; slices = ${slices[kind]}u; ${
          kind === 0 ? "first = 0u; before = 0u;" : `first = count${kind - 1}; before = items${kind - 1};`
        } }`
      ).join("\n    ")
    }
    let group = min(short + first + (item - before) / slices, tokens - 1u);
    let column = (item - before) % slices * across + local % across;
    let c = min(column, ${elements - 1}u);
    let row = rowOf(group);
    let begin = beginOf(group);
    let end = select(begin, beginOf(group + 1u), row < ${vocabulary}u);
    let writes = local < across && column < ${elements}u && row < ${vocabulary}u;
    let down = ${lanes}u / across;
    ${each((part) => `var old${part} = V(); var sum${part} = V();`)}
    if (writes) { ${each((part) => `old${part} = ${target("row", 0, part)};`)} }
    for (var at = begin + local / across; at < end; at += ${longAhead}u * down) {
      ${add("down", longAhead, 1)}
    }
    ${each((part) => `${share("local", part)} = sum${part};`)}
    workgroupBarrier();
    for (var half = ${lanes / 2}u; half >= across; half /= 2u) {
      if (local < half) { ${each((part) => `${share("local", part)} += ${share("local + half", part)};`)} }
      workgroupBarrier();
    }
    if (writes) { ${each((part) => `${target("row", 0, part)} = old${part} + ${share("local", part)};`)} }
    workgroupBarrier();
  }
}`;
  }
}
