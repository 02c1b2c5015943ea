/**
 * Text of the reductions. Both go in two passes through partial sums, since WebGPU has no float atomics and sums must
 * repeat bit for bit: every addition has its place.
 */
import type { FloatType } from "../host.ts";
import { type DeviceTraits, type Pass, spread } from "../kernel.ts";
import { storage } from "../storage.ts";

const threads = 256;
/** Loads in flight a thread. Loops are not unrolled by the compiler (they carry a bound counter), so the text is. */
const unroll = 4;

const repeat = (count: number, text: (k: number) => string) =>
  Array.from({ length: count }, (_, k) => text(k)).join("");

/** Sums `total` of all invocations in a fixed order; the result is in `shares[0]`. */
function groupSum(): string {
  const steps: string[] = ["shares[lane] = total;", "workgroupBarrier();"];
  for (let half = threads / 2; half >= 1; half /= 2) {
    steps.push(`if (lane < ${half}u) { shares[lane] += shares[lane + ${half}u]; }`, "workgroupBarrier();");
  }
  return steps.join("\n  ");
}

/** Groups that share the sum of `items` values. One pass of a full device; also the length of the partial sums. */
export function normGroups(length: number): number {
  return Math.min(1024, Math.ceil(length / (4 * threads)));
}

/** Pass 1: x → partial[group]. Pass 2: partial → out[0]. Operands x, out, partial. */
export function squaredNormPasses(traits: DeviceTraits, length: number, type: FloatType): Pass[] {
  const groups = normGroups(length);
  const sum = (
    code: {
      items: number;
      type: FloatType;
      element: string;
      square: string;
      source: string;
      target: string;
      n: number;
      places: readonly number[];
    },
  ) => {
    const stride = code.n * threads;
    const { directives, bindings, load, bound } = storage(
      traits,
      [
        { name: code.source, type: code.type, length, access: "read" },
        { name: code.target, type: "f32", length: code.n, access: "write" },
      ],
      { [code.source]: code.element },
      1,
      code.element === "f32" ? [] : [code.source],
    );
    const text = `${directives}${bindings}
var<workgroup> shares: array<f32, ${threads}>;

fn term(i: u32) -> f32 {
  if (i >= ${code.items}u) { return 0.0; }
  let value = ${load(code.source, "i")};
  return ${code.square};
}

@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  ${repeat(unroll, (k) => `var total${k} = 0.0;\n  `)}
  for (var i = group.x * ${threads}u + lane; i < ${code.items}u; i += ${unroll * stride}u) {${
      repeat(unroll, (k) => `\n    total${k} += term(i + ${k * stride}u);`)
    }
  }
  let total = ${Array.from({ length: unroll }, (_, k) => `total${k}`).join(" + ")};
  ${groupSum()}
  if (lane == 0u) { ${code.target}[group.x] = shares[0]; }
}
`;
    return { code: text, ...bound(code.places) };
  };
  const vector = length % 4 === 0;
  return [
    {
      ...sum({
        items: vector ? length / 4 : length,
        type,
        element: vector ? "vec4<f32>" : "f32",
        square: vector ? "dot(value, value)" : "value * value",
        source: "x",
        target: "partial",
        n: groups,
        places: [0, 2],
      }),
      workgroups: [groups, 1, 1],
    },
    {
      ...sum({
        items: groups,
        type: "f32",
        element: "f32",
        square: "value",
        source: "partial",
        target: "result",
        n: 1,
        places: [2, 1],
      }),
      workgroups: [1, 1, 1],
    },
  ];
}

/** Rows that one thread sums, and the number of such pieces. */
export function columnSumPieces(rows: number): { rowsEach: number; pieces: number } {
  const rowsEach = Math.max(32, Math.ceil(rows / 64));
  return { rowsEach, pieces: Math.ceil(rows / rowsEach) };
}

/**
 * A thread sums one column (or four side by side) over a piece of the rows, neighbours in step so that loads are whole
 * lines. Pass 1: x → partial[piece, column]; pass 2 sums the pieces into y the same way. Few rows need one pass.
 */
export function columnSumPasses(
  traits: DeviceTraits,
  rows: number,
  columns: number,
  accumulate: boolean,
  type: FloatType,
): Pass[] {
  const { rowsEach, pieces } = columnSumPieces(rows);
  if (pieces === 1) return [columnSumPass(traits, rows, rows, columns, accumulate, type, [0, 1])];
  return [
    columnSumPass(traits, rows, rowsEach, columns, false, type, [0, 2]),
    columnSumPass(traits, pieces, pieces, columns, accumulate, "f32", [2, 1]),
  ];
}

/** (rows, columns) → (pieces of rowsEach rows, columns) */
function columnSumPass(
  traits: DeviceTraits,
  rows: number,
  rowsEach: number,
  columns: number,
  accumulate: boolean,
  type: FloatType,
  places: readonly number[],
): Pass {
  const width = columns % 4 === 0 ? 4 : 1;
  const element = width === 4 ? "vec4<f32>" : "f32";
  const across = columns / width;
  const items = across * Math.ceil(rows / rowsEach);
  const size = 64;
  const workgroups = spread(Math.ceil(items / size), traits.limits.maxComputeWorkgroupsPerDimension);
  const { directives, bindings, load, bound } = storage(
    traits,
    [
      { name: "source", type, length: rows * columns, access: "read" },
      { name: "sums", type: "f32", length: items * width, access: accumulate ? "update" : "write" },
    ],
    { source: element, sums: element },
    1,
    ["source"],
  );
  return {
    code: `${directives}${bindings}

@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let item = (group.y * ${workgroups[0]}u + group.x) * ${size}u + lane;
  if (item >= ${items}u) { return; }
  let column = item % ${across}u;
  var row = item / ${across}u * ${rowsEach}u;
  let end = min(row + ${rowsEach}u, ${rows}u);
  ${repeat(unroll, (k) => `var total${k} = ${element}(0.0);\n  `)}
  for (; row + ${unroll - 1}u < end; row += ${unroll}u) {${
      repeat(unroll, (k) => `\n    total${k} += ${load("source", `(row + ${k}u) * ${across}u + column`)};`)
    }
  }
  for (; row < end; row += 1u) { total0 += ${load("source", `row * ${across}u + column`)}; }
  let total = ${Array.from({ length: unroll }, (_, k) => `total${k}`).join(" + ")};
  sums[item] ${accumulate ? "+=" : "="} total;
}
`,
    workgroups,
    ...bound(places),
  };
}
