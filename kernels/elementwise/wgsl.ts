/** Text of elementwise passes. */
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { pcg4dWgsl } from "./counter_random.ts";

const threads = 256; // 64 reach four fifths of the copy rate of 256 on an H200

/**
 * A pass that runs `body` for every index `i` of equally long `f32` operands. Where the length is a multiple of four the
 * arrays are of `vec4<f32>`, so `body` must be right for both types. Operands named in `scalars` stay arrays of `f32`.
 */
export function elementwisePass(
  traits: DeviceTraits,
  operands: readonly Operand[],
  body: string,
  scalars: readonly string[] = [],
): Pass {
  const { length } = operands[0];
  const width = length % 4 === 0 ? 4 : 1;
  const element = width === 4 ? "vec4<f32>" : "f32";
  const items = length / width;
  const groups = spread(Math.ceil(items / threads), traits.limits.maxComputeWorkgroupsPerDimension);
  const bindings = operands.map((operand, i) => {
    const mode = operand.access === "read" ? "read" : "read_write";
    const type = scalars.includes(operand.name) ? "f32" : element;
    return `@group(0) @binding(${i}) var<storage, ${mode}> ${operand.name}: array<${type}>;`;
  });
  return {
    code: `${bindings.join("\n")}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * ${groups[0]}u + group.x) * ${threads}u + lane;
  if (i >= ${items}u) { return; }
  ${body}
}
`,
    workgroups: groups,
    operands: operands.map((_, i) => i),
  };
}

/** Dropout: a thread hashes once for its four elements, which one hash's four words decide. */
export function dropoutPass(
  traits: DeviceTraits,
  length: number,
  threshold: number,
  factor: number,
  layer: number,
): Pass {
  const vector = length % 4 === 0;
  const quads = Math.ceil(length / 4);
  const groups = spread(Math.ceil(quads / threads), traits.limits.maxComputeWorkgroupsPerDimension);
  const element = vector ? "vec4<f32>" : "f32";
  const lanes = ["x", "y", "z", "w"];
  const store = vector
    ? `y[quad] = select(vec4<f32>(0.0), x[quad] * f32(${factor}), words >= vec4<u32>(${threshold}u));`
    : lanes.map((lane, j) => {
      const index = `4u * quad + ${j}u`;
      return `if (${index} < ${length}u) {
    y[${index}] = select(0.0, x[${index}] * f32(${factor}), words.${lane} >= ${threshold}u);
  }`;
    }).join("\n  ");
  return {
    code: `@group(0) @binding(0) var<storage, read> x: array<${element}>;
@group(0) @binding(1) var<storage, read> counter: array<u32>; // seed, step
@group(0) @binding(2) var<storage, read_write> y: array<${element}>;

${pcg4dWgsl}

@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let quad = (group.y * ${groups[0]}u + group.x) * ${threads}u + lane;
  if (quad >= ${quads}u) { return; }
  let words = pcg4d(vec4<u32>(quad, ${layer}u, counter[1], counter[0]));
  ${store}
}
`,
    workgroups: groups,
    operands: [0, 1, 2],
  };
}
