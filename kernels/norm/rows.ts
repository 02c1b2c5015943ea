/**
 * Generator for kernels that work row by row: sums over a row, then a pass that writes. Memory decides their speed, so
 * each row is read once and held in registers until it is written.
 *
 * v1  one workgroup a row, its lanes side by side along the columns, vec4 where the width is a multiple of 4
 * v2  the row stays in registers between passes (unrolled by the generator); rows too wide for that are read again
 * v3  sums over the workgroup in two barriers (square-root tree) instead of one for each halving
 *     (v3b: lanes of a subgroup merge by shuffles, in registers, and leave one value each for the workgroup)
 * v4  on a rasteriser in software one invocation a row: there workgroup memory is as slow as the buffers themselves
 *     (llvmpipe, 512 rows: norms of 128 columns 1.3 to 2.3 times as fast, cross entropy of 4,096 columns 8 times)
 */
import { choose, sizeClass } from "../choices.ts";
import type { DeviceTraits, Operand } from "../kernel.ts";
import { spread } from "../kernel.ts";

/** How a row is shared out. Columns are counted in vectors of `width` from here on. */
export interface RowLayout {
  readonly rows: number;
  readonly columns: number;
  /** Elements of a vector: 4 where the columns allow it. */
  readonly width: 1 | 4;
  /** Vectors in a row. */
  readonly vectors: number;
  /** Lanes on one row; a power of two. 1: an invocation has a row to itself. */
  readonly lanes: number;
  /** Vectors each lane keeps in registers, or 0 where passes read the row again, or need it only once. */
  readonly held: number;
  readonly workgroups: [number, number, number];
}

/** Floats a lane may keep of its row, before registers spill. */
const registerBudget = 64;
/** Invocations in a group when each has its own row. */
const rowsPerGroup = 16;

/**
 * Chooses the layout for a device.
 *
 * @param values held of each element (1 for x alone, 2 for x and its gradient)
 * @param once nothing is needed twice, so nothing is held: rows are read for what they sum to, or written again
 */
export function layOutRows(
  { rows, columns, values, once }: { rows: number; columns: number; values: number; once?: "read" | "written" },
  traits: DeviceTraits,
): RowLayout {
  const width = columns % 4 === 0 ? 4 : 1;
  const vectors = columns / width;
  const shape = { rows, columns, width, vectors } as const;
  const most = mostLanes(traits), narrow = shippedLanes({ columns, values }, traits);
  // Several short groups on a processor hide each other's ends: 1,024 lanes read logits at 0.90 of the copy rate on an H200
  // (0.66 in another form of the loop), 64 to 128 at 1.00 to 1.02. Where they are written too, 1,024 are a little quicker.
  const shipped = once === "read" ? Math.min(128, narrow) : narrow;
  const others = (traits.software ? [1, 32] : [32, 64, 128, 256, 512, 1024]).filter((lanes) =>
    lanes <= most && lanes <= Math.max(32, vectors)
  );
  const candidates = [...new Set([shipped, ...others])].map((lanes) => `${lanes} lanes` as const);
  const question = `rows ${sizeClass(rows)} x ${sizeClass(columns)}, ${width * values} wide${once ? `, ${once}` : ""}`;
  const lanes = parseInt(choose(traits, question, candidates));
  if (lanes === 1) return { ...shape, lanes, held: 0, workgroups: spread(Math.ceil(rows / rowsPerGroup)) };
  const each = Math.ceil(vectors / lanes), fits = !once && each * width * values <= registerBudget;
  return { ...shape, lanes, held: fits ? each : 0, workgroups: spread(rows) };
}

const mostLanes = ({ limits }: DeviceTraits) => Math.min(1024, limits.maxComputeInvocationsPerWorkgroup);

/** Lanes on one row, as experience has them. */
function shippedLanes({ columns, values }: { columns: number; values: number }, traits: DeviceTraits): number {
  if (traits.software) return 1;
  const width = columns % 4 === 0 ? 4 : 1, vectors = columns / width;
  const fits = (lanes: number) => Math.ceil(vectors / lanes) * width * values <= registerBudget;
  const most = mostLanes(traits);
  let lanes = 32;
  while (lanes < 256 && lanes * 4 < vectors) lanes *= 2;
  const narrow = lanes;
  while (lanes * 2 <= most && !fits(lanes)) lanes *= 2;
  return fits(lanes) ? lanes : narrow;
}

/** Declares operands as bindings. `elements` overrides the element type by name, e.g. `{ x: "V" }`. */
export function bindings(operands: readonly Operand[], elements: Readonly<Record<string, string>> = {}): string {
  return operands.map(({ name, type, access }, index) =>
    `@group(0) @binding(${index}) var<storage, ${access === "read" ? "read" : "read_write"}> ` +
    `${name}: array<${elements[name] ?? type}>;`
  ).join("\n");
}

/** A number as a WGSL `f32` literal. */
export const float = (value: number): string => `${value}f`;

/** Vector type `V` and `total`, the sum of its elements. */
export function vectorPrelude(width: 1 | 4): string {
  return width === 4
    ? "alias V = vec4f;\nfn total(v: V) -> f32 { return (v.x + v.y) + (v.z + v.w); }"
    : "alias V = f32;\nfn total(v: V) -> f32 { return v; }";
}

/**
 * A function `name(mine: T, lane: u32) -> T` that merges one value of each lane and gives every lane the result, always
 * in the same order. The first √lanes lanes merge √lanes values each, then every lane merges those. Where a device is given
 * that has subgroups, each of these merges its own by shuffles first; the text then begins with `subgroupPrelude`.
 *
 * @param merge expression of `a` and `b`, `a` from the lower lanes; with subgroups it must not matter which is which
 * @param fields members of a `type` that is a structure
 */
export function reduction(
  { lanes }: RowLayout,
  { name, type = "f32", merge = "a + b", fields = [] }: {
    name: string;
    type?: string;
    merge?: string;
    fields?: readonly string[];
  },
  traits?: DeviceTraits,
): string {
  if (lanes === 1) return `fn ${name}(mine: ${type}, lane: u32) -> ${type} { return mine; }`;
  const size = traits?.software === false ? traits.subgroupSize : 0;
  if (size > 1 && lanes % size === 0) return subgroupReduction({ lanes, size, name, type, merge, fields });
  const first = 2 ** Math.floor(Math.log2(lanes) / 2), each = lanes / first;
  const steps = (count: number, from: (step: number) => string) =>
    Array.from({ length: count - 1 }, (_, i) => `merged = ${name}Merge(merged, ${name}Slots[${from(i + 1)}]);`).join(
      " ",
    );
  return `
var<workgroup> ${name}Slots: array<${type}, ${lanes}>;
fn ${name}Merge(a: ${type}, b: ${type}) -> ${type} { return ${merge}; }
fn ${name}(mine: ${type}, lane: u32) -> ${type} {
  ${name}Slots[lane] = mine;
  workgroupBarrier();
  if (lane < ${first}u) {
    var merged = mine;
    ${steps(each, (i) => `lane + ${i * first}u`)}
    ${name}Slots[lane] = merged;
  }
  workgroupBarrier();
  var merged = ${name}Slots[0];
  ${steps(first, (i) => `${i}`)}
  workgroupBarrier(); // the slots may be used again
  return merged;
}`;
}

function subgroupReduction(
  { lanes, size, name, type, merge, fields }: {
    lanes: number;
    size: number;
    name: string;
    type: string;
    merge: string;
    fields: readonly string[];
  },
): string {
  const groups = lanes / size;
  const shuffled = (distance: number) => {
    const shuffle = (value: string) => `subgroupShuffleXor(${value}, ${distance}u)`;
    return fields.length > 0
      ? `${type}(${fields.map((field) => shuffle(`merged.${field}`)).join(", ")})`
      : shuffle("merged");
  };
  const distances = Array.from({ length: Math.log2(size) }, (_, i) => size >> (i + 1));
  const across = `
  if (lane % ${size}u == 0u) { ${name}Slots[lane / ${size}u] = merged; }
  workgroupBarrier();
  merged = ${name}Slots[0];
  ${Array.from({ length: groups - 1 }, (_, i) => `merged = ${name}Merge(merged, ${name}Slots[${i + 1}]);`).join("\n  ")}
  workgroupBarrier(); // the slots may be used again`;
  return `
${groups > 1 ? `var<workgroup> ${name}Slots: array<${type}, ${groups}>;` : ""}
fn ${name}Merge(a: ${type}, b: ${type}) -> ${type} { return ${merge}; }
fn ${name}(mine: ${type}, lane: u32) -> ${type} {
  var merged = mine;
  ${distances.map((distance) => `merged = ${name}Merge(merged, ${shuffled(distance)});`).join("\n  ")}${
    groups > 1 ? across : ""
  }
  return merged;
}`;
}

/** Text of a row kernel's entry point, in parts. */
export interface RowText {
  /** `fn main(…) {` and the names `row`, `lane` and `base`, the row's first vector. Close it with `}`. */
  readonly open: string;
  /** Runs `body` for each vector of the lane, with `c`, its place in the row, and the held values by name. */
  first(body: string): string;
  /** The same once more, without reading again what is held. */
  again(body: string): string;
  /** Runs `body` for four of the lane's vectors together, or one: the first is at `start`, the others `lanes` apart. */
  fours(body: (vectors: readonly string[]) => string): string;
}

/** @param held values that later passes need again, by name: expressions of `base` and `c`, of type `V` */
export function rowText(layout: RowLayout, held: Readonly<Record<string, string>>): RowText {
  const { rows, vectors, lanes, workgroups } = layout;
  const names = Object.keys(held);
  const upTo = (count: number) => Array.from({ length: count }, (_, k) => k);
  const declare = (k: number) => names.map((name) => `var ${name}${k}: V;`).join(" ");
  const load = names.map((name) => `let ${name} = ${held[name]};`).join(" ");
  const keep = (k: number) => names.map((name) => `${name}${k} = ${held[name]};`).join(" ");
  const recall = (k: number) => names.map((name) => `let ${name} = ${name}${k};`).join(" ");
  const place = (k: number) => `let c = start + ${k * lanes}u;`;

  // The row is read in every pass: four vectors an iteration, all asked for before the first is used.
  const loop = (body: string) => `
  for (; start + ${3 * lanes}u < ${vectors}u; start += ${4 * lanes}u) {
    ${upTo(4).map((k) => `${declare(k)} { ${place(k)} ${keep(k)} }`).join("\n    ")}
    ${upTo(4).map((k) => `{ ${place(k)} ${recall(k)} ${body} }`).join("\n    ")}
  }
  for (; start < ${vectors}u; start += ${lanes}u) { let c = start; ${load} ${body} }
  start = lane;`;

  // The row stays in registers: as many blocks as a lane has vectors, the last ones guarded where lanes run out.
  const block = (k: number, body: string) =>
    `{ ${place(k)} ${(k + 1) * lanes <= vectors ? body : `if (c < ${vectors}u) { ${body} }`} }`;
  const blocks = (body: (k: number) => string) => `
  ${upTo(layout.held).map((k) => block(k, body(k))).join("\n  ")}`;

  const group = `group.y * ${workgroups[0]}u + group.x`;
  return {
    open: `
@compute @workgroup_size(${lanes === 1 ? rowsPerGroup : lanes})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let row = ${lanes === 1 ? `(${group}) * ${rowsPerGroup}u + local` : group};
  let lane = ${lanes === 1 ? "0u" : "local"};
  if (row >= ${rows}u) { return; }
  let base = row * ${vectors}u;
  var start = lane;`,
    first(body) {
      if (layout.held === 0) return loop(body);
      return `${upTo(layout.held).map(declare).join(" ")}${blocks(keep)}${blocks((k) => `${recall(k)} ${body}`)}`;
    },
    again: (body) => layout.held === 0 ? loop(body) : blocks((k) => `${recall(k)} ${body}`),
    fours: (body) => `
  for (; start + ${3 * lanes}u < ${vectors}u; start += ${4 * lanes}u) {
    ${upTo(4).map((k) => `${declare(k)} { ${place(k)} ${keep(k)} }`).join("\n    ")}
    ${body(upTo(4).map((k) => `${names[0]}${k}`))}
  }
  for (; start < ${vectors}u; start += ${lanes}u) { ${declare(0)} { ${place(0)} ${keep(0)} } ${body([`${names[0]}0`])} }
  start = lane;`,
  };
}

/** Entry point of a kernel whose work splits into `count` independent items: opens `main` with `i`, the item's index. */
export function itemText(count: number): { readonly open: string; readonly workgroups: [number, number, number] } {
  const workgroups = spread(Math.ceil(count / 256));
  const open = `
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let i = (group.y * ${workgroups[0]}u + group.x) * 256u + local;
  if (i >= ${count}u) { return; }`;
  return { open, workgroups };
}

/** @throws {RangeError} unless every size is a positive whole number. */
export function requireSizes(kernel: string, sizes: Readonly<Record<string, number>>): void {
  for (const [name, size] of Object.entries(sizes)) {
    if (!Number.isSafeInteger(size) || size < 1) {
      throw new RangeError(
        `Cannot make ${kernel}: ${name} must be a whole number of at least 1, current value is ${size}`,
      );
    }
  }
}
