/** Text of elementwise passes. */
import { type Operand, type Pass, spread } from "../kernel.ts";

const threads = 256; // 64 reach four fifths of the copy rate of 256 on an H200

/**
 * A pass that runs `body` for every index `i` of equally long `f32` operands. Where the length is a multiple of four the
 * arrays are of `vec4<f32>`, so `body` must be right for both types.
 */
export function elementwisePass(operands: readonly Operand[], body: string, declarations = ""): Pass {
  const { length } = operands[0];
  const width = length % 4 === 0 ? 4 : 1;
  const element = width === 4 ? "vec4<f32>" : "f32";
  const items = length / width;
  const groups = spread(Math.ceil(items / threads));
  const bindings = operands.map(({ name, access }, i) =>
    `@group(0) @binding(${i}) var<storage, ${access === "read" ? "read" : "read_write"}> ${name}: array<${element}>;`
  );
  return {
    code: `${bindings.join("\n")}
alias Element = ${element};
${declarations}
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
