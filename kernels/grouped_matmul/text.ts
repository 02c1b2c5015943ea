/** Text of the products by group. Both kinds share the tile; what differs is where it lies and what it sums over. */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { type Storage, storage } from "../storage.ts";
import type { GroupedSizes } from "./mod.ts";

export type GroupedForm =
  | { readonly kind: "rows"; readonly transposeB: boolean }
  | { readonly kind: "outer"; readonly accumulate: boolean };

const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);

/** What a tile is of: rows `[row0, rowEnd)` of C from `column0` on, summed over `[begin, end)`. */
interface Placed {
  /** Tiles that there can be. */
  readonly tiles: number;
  /** Sets `g`, `row0`, `rowEnd`, `column0`, `begin` and `end` from `id`, or returns. */
  readonly place: string;
  readonly columns: number;
  /** Where the element of A for row `i` of C and term `p` lies; of B for column `j` and term `p`; of C. */
  readonly a: (i: string, p: string) => string;
  readonly b: (j: string, p: string) => string;
  readonly c: (i: string, j: string) => string;
  readonly adds: boolean;
  /** Whether neighbours in memory are terms of a sum. */
  readonly alongA: boolean;
  readonly alongB: boolean;
}

function placed({ rows, groups, n, k }: GroupedSizes, form: GroupedForm, height: number, width: number): Placed {
  if (form.kind === "rows") {
    const across = Math.ceil(n / width);
    return {
      // Rows that are no group's come last, as one group more.
      tiles: (Math.floor(rows / height) + groups + 1) * across,
      place: `
  var g = 0u;
  var tile = id / ${across}u;
  var row0 = 0u;
  var rowEnd = 0u;
  for (; g <= ${groups}u; g++) {
    row0 = min(offset[g], ${rows}u);
    rowEnd = ${rows}u;
    if (g < ${groups}u) { rowEnd = clamp(offset[g + 1u], row0, ${rows}u); }
    let count = (rowEnd - row0 + ${height - 1}u) / ${height}u;
    if (tile < count) { break; }
    tile -= count;
  }
  if (g > ${groups}u) { return; }
  row0 += tile * ${height}u;
  let column0 = id % ${across}u * ${width}u;
  let begin = 0u;
  let end = select(0u, ${k}u, g < ${groups}u);`,
      columns: n,
      a: (i, p) => `(${i}) * ${k}u + ${p}`,
      b: (j, p) => form.transposeB ? `(g * ${n}u + ${j}) * ${k}u + ${p}` : `(g * ${k}u + ${p}) * ${n}u + ${j}`,
      c: (i, j) => `(${i}) * ${n}u + ${j}`,
      adds: false,
      alongA: true,
      alongB: form.transposeB,
    };
  }
  const down = Math.ceil(n / height), across = Math.ceil(k / width);
  return {
    tiles: groups * down * across,
    place: `
  let g = id / ${down * across}u;
  let row0 = id / ${across}u % ${down}u * ${height}u;
  let rowEnd = ${n}u;
  let column0 = id % ${across}u * ${width}u;
  let begin = min(offset[g], ${rows}u);
  let end = min(offset[g + 1u], ${rows}u);`,
    columns: k,
    a: (i, p) => `(${p}) * ${n}u + ${i}`,
    b: (j, p) => `(${p}) * ${k}u + ${j}`,
    c: (i, j) => `(g * ${n}u + ${i}) * ${k}u + ${j}`,
    adds: form.accumulate,
    alongA: false,
    alongB: false,
  };
}

export function groupedPasses(
  sizes: GroupedSizes,
  form: GroupedForm,
  operands: readonly Operand[],
  traits: DeviceTraits,
): Pass[] {
  if (!traits.software) return tilePasses(sizes, form, storage(traits, operands));
  if (sizes.n % 4 !== 0 || sizes.k % 4 !== 0) {
    return blockPasses(sizes, form, storage(traits, operands, {}, 1, ["a", "b"]));
  }
  const vectors = { a: "vec4f", b: "vec4f", c: "vec4f" };
  return vectorPasses(sizes, form, storage(traits, operands, vectors, 1, ["a", "b"]));
}

/** A statement that gives an element of C its sum. */
const finish = ({ store, add }: Storage, adds: boolean, at: string, sum: string) =>
  adds ? add("c", at, sum) : store("c", at, sum);

/** v1. Neighbouring invocations stand side by side along the columns. */
function blockPasses(sizes: GroupedSizes, form: GroupedForm, stored: Storage): Pass[] {
  const { tiles, place, columns, a, b, c, adds } = placed(sizes, form, 4, 4);
  const workgroups = spread(Math.ceil(tiles / 64));
  const code = `${stored.directives}
${stored.bindings}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = (group.y * ${workgroups[0]}u + group.x) * 64u + local;
  if (id >= ${tiles}u) { return; }
${place}
  ${upTo(4).map((i) => `let i${i} = min(row0 + ${i}u, rowEnd - 1u);`).join(" ")}
  ${upTo(4).map((j) => `let j${j} = min(column0 + ${j}u, ${columns - 1}u);`).join(" ")}
  ${upTo(4).map((i) => `var s${i} = vec4f();`).join(" ")}
  for (var p = begin; p < end; p++) {
    let v = vec4f(${upTo(4).map((j) => stored.load("b", b(`j${j}`, "p"))).join(", ")});
    ${upTo(4).map((i) => `s${i} = fma(vec4f(${stored.load("a", a(`i${i}`, "p"))}), v, s${i});`).join("\n    ")}
  }
  ${
    upTo(4).map((i) =>
      `if (row0 + ${i}u < rowEnd) {
    ${
        upTo(4).map((j) =>
          `if (column0 + ${j}u < ${columns}u) { ${finish(stored, adds, c(`i${i}`, `j${j}`), `s${i}[${j}]`)} }`
        )
          .join("\n    ")
      }
  }`
    ).join("\n  ")
  }
}
`;
  return [{ code, workgroups, ...stored.bound([0, 1, 2, 3]) }];
}

/** v1 where all rows are whole vectors: a block is a vector wide, and terms pass four at a time where they lie together. */
function vectorPasses(sizes: GroupedSizes, form: GroupedForm, stored: Storage): Pass[] {
  const { tiles, place, a, b, c, adds, alongA, alongB } = placed(sizes, form, 4, 4);
  const workgroups = spread(Math.ceil(tiles / 64));
  const load = (name: "a" | "b", at: string) => stored.load(name, `((${at}) / 4u)`);
  const own = upTo(4);
  // Rows are clamped where they end within a group; those of C that are terms' vectors are whole.
  const terms = alongA
    ? `${own.map((i) => `let u${i} = ${load("a", a(`i${i}`, "p"))};`).join(" ")}
    ${
      own.map((t) => `let v${t} = ${load("b", alongB ? b(`(column0 + ${t}u)`, "p") : b("column0", `(p + ${t}u)`))};`)
        .join(" ")
    }
    ${
      own.map((t) =>
        `{ let v = ${alongB ? `vec4f(${own.map((j) => `v${j}[${t}]`).join(", ")})` : `v${t}`}; ${
          own.map((i) => `s${i} = fma(vec4f(u${i}[${t}]), v, s${i});`).join(" ")
        } }`
      ).join("\n    ")
    }`
    : `let u = ${load("a", a("row0", "p"))};
    let v = ${load("b", b("column0", "p"))};
    ${own.map((i) => `s${i} = fma(vec4f(u[${i}]), v, s${i});`).join(" ")}`;
  const code = `${stored.directives}
${stored.bindings}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = (group.y * ${workgroups[0]}u + group.x) * 64u + local;
  if (id >= ${tiles}u) { return; }
${place}
  ${own.map((i) => `let i${i} = min(row0 + ${i}u, rowEnd - 1u);`).join(" ")}
  ${own.map((i) => `var s${i} = vec4f();`).join(" ")}
  for (var p = begin; p < end; p += ${alongA ? 4 : 1}u) {
    ${terms}
  }
  ${
    own.map((i) =>
      `if (row0 + ${i}u < rowEnd) { let at = (${c(`i${i}`, "column0")}) / 4u; ${finish(stored, adds, "at", `s${i}`)} }`
    ).join("\n  ")
  }
}
`;
  return [{ code, workgroups, ...stored.bound([0, 1, 2, 3]) }];
}

const size = 64, depth = 16, lines = size / 4;

/** v2. Both tiles stand in workgroup memory with the terms outermost; an invocation keeps 4 x 4 sums in registers. */
function tilePasses(sizes: GroupedSizes, form: GroupedForm, stored: Storage): Pass[] {
  const { tiles, place, columns, a, b, c, adds, alongA, alongB } = placed(sizes, form, size, size);
  const workgroups = spread(tiles);
  const bring = (
    name: string,
    operand: "a" | "b",
    along: boolean,
    element: (outer: string, p: string) => string,
    first: string,
    last: string,
  ) =>
    upTo(depth * size / 256).map((q) => {
      const outer = along ? `local / ${depth}u + ${q * 256 / depth}u` : `local % ${size}u`;
      const p = along ? `local % ${depth}u` : `local / ${size}u + ${q * 256 / size}u`;
      return `{
      let o = ${outer};
      let p = ${p};
      var v = 0f;
      if (${first} + o < ${last} && p0 + p < end) { v = ${stored.load(operand, element(`${first} + o`, "(p0 + p)"))}; }
      ${name}[p * ${lines}u + o / 4u][o % 4u] = v;
    }`;
    }).join("\n    ");
  const code = `${stored.directives}
${stored.bindings}
var<workgroup> tileA: array<vec4f, ${depth * lines}>;
var<workgroup> tileB: array<vec4f, ${depth * lines}>;
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let id = group.y * ${workgroups[0]}u + group.x;
  if (id >= ${tiles}u) { return; }
${place}
  let tx = local % ${lines}u;
  let ty = local / ${lines}u;
  ${upTo(4).map((i) => `var s${i} = vec4f();`).join(" ")}
  for (var p0 = begin; p0 < end; p0 += ${depth}u) {
    ${bring("tileA", "a", alongA, a, "row0", "rowEnd")}
    ${bring("tileB", "b", alongB, b, "column0", `${columns}u`)}
    workgroupBarrier();
    ${
    upTo(depth).map((p) =>
      `{ let u = tileA[${p * lines}u + ty]; let v = tileB[${p * lines}u + tx]; ${
        upTo(4).map((i) => `s${i} = fma(vec4f(u[${i}]), v, s${i});`).join(" ")
      } }`
    ).join("\n    ")
  }
    workgroupBarrier();
  }
  ${
    upTo(4).map((i) =>
      upTo(4).map((j) =>
        `if (row0 + ty * 4u + ${i}u < rowEnd && column0 + tx * 4u + ${j}u < ${columns}u) { ${
          finish(stored, adds, c(`row0 + ty * 4u + ${i}u`, `column0 + tx * 4u + ${j}u`), `s${i}[${j}]`)
        } }`
      ).join("\n  ")
    ).join("\n  ")
  }
}
`;
  return [{ code, workgroups, operands: [0, 1, 2, 3] }];
}
