/** Text of elementwise passes. */
import type { FloatType } from "../host.ts";
import { type DeviceTraits, type Operand, type Pass, spread } from "../kernel.ts";
import { type Storage, storage } from "../storage.ts";
import { pcg4dWgsl } from "./counter_random.ts";

const threads = 256; // 64 reach four fifths of the copy rate of 256 on an H200

/**
 * A pass that runs `body` for every index `i` of equally long float operands. Where the length is a multiple of four an
 * element is a `vec4<f32>`, so `body` must be right for both types. Operands named in `scalars` are arrays of `vec4f`. What
 * it reads, it reads by `load`.
 */
export function elementwisePass(
  traits: DeviceTraits,
  operands: readonly Operand[],
  body: (storage: Storage) => string,
  scalars: readonly string[] = [],
): Pass {
  const { length } = operands[0];
  const width = length % 4 === 0 ? 4 : 1;
  const element = width === 4 ? "vec4<f32>" : "f32";
  const items = length / width;
  const groups = spread(Math.ceil(items / threads), traits.limits.maxComputeWorkgroupsPerDimension);
  const elements = Object.fromEntries(
    operands.map(({ name }) => [name, scalars.includes(name) ? "vec4<f32>" : element]),
  );
  const stored = storage(traits, operands, elements, 1, operands.map(({ name }) => name));
  return {
    code: `${stored.directives}${stored.bindings}
@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let i = (group.y * ${groups[0]}u + group.x) * ${threads}u + lane;
  if (i >= ${items}u) { return; }
  ${body(stored)}
}
`,
    workgroups: groups,
    ...stored.bound(operands.map((_, i) => i)),
  };
}

/** Dropout: a thread hashes once for its four elements, which one hash's four words decide. */
export function dropoutPass(
  traits: DeviceTraits,
  { length, threshold, factor, layer, firstElement, type }: {
    length: number;
    threshold: number;
    factor: number;
    layer: number;
    firstElement: number;
    type: FloatType;
  },
): Pass {
  const skipped = firstElement % 4; // elements of the first quad that are not here
  const vector = length % 4 === 0 && skipped === 0;
  const quads = Math.ceil((length + skipped) / 4), firstQuad = (firstElement - skipped) / 4;
  const groups = spread(Math.ceil(quads / threads), traits.limits.maxComputeWorkgroupsPerDimension);
  const element = vector ? "vec4<f32>" : "f32";
  const lanes = ["x", "y", "z", "w"];
  const { directives, bindings, load, store } = storage(traits, [
    { name: "x", type, length, access: "read" },
    { name: "counter", type: "u32", length: 2, access: "read" }, // seed, step
    { name: "y", type, length, access: "write" },
  ], { x: element, y: element });
  const write = vector
    ? store(
      "y",
      "quad",
      `select(vec4<f32>(0.0), ${load("x", "quad")} * f32(${factor}), words >= vec4<u32>(${threshold}u))`,
    )
    : lanes.map((lane, j) => {
      // Before the first element the difference wraps to a number past the last one.
      const index = skipped === 0 ? `4u * quad + ${j}u` : `4u * quad + ${j}u - ${skipped}u`;
      return `if (${index} < ${length}u) {
    ${store("y", index, `select(0.0, ${load("x", index)} * f32(${factor}), words.${lane} >= ${threshold}u)`)}
  }`;
    }).join("\n  ");
  return {
    code: `${directives}${bindings}

${pcg4dWgsl}

@compute @workgroup_size(${threads})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let quad = (group.y * ${groups[0]}u + group.x) * ${threads}u + lane;
  if (quad >= ${quads}u) { return; }
  let words = pcg4d(vec4<u32>(quad${firstQuad === 0 ? "" : ` + ${firstQuad}u`}, ${layer}u, counter[1], counter[0]));
  ${write}
}
`,
    workgroups: groups,
    operands: [0, 1, 2],
  };
}
