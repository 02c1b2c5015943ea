/**
 * Text of the squared norm. It goes in two passes through partial sums, since WebGPU has no float atomics and sums must
 * repeat bit for bit: every addition has its place.
 */
import type { FloatType } from "../host.ts";
import type { DeviceTraits, Pass } from "../kernel.ts";
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
  // Software merges a group's sums in workgroup memory as slowly as it reads: few groups, one for each core and some more.
  const groups = Math.min(normGroups(length), traits.software ? 16 : Infinity);
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
