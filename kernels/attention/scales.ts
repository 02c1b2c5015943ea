/**
 * `bf16` operands for matrix units of `f16`: each is multiplied by the power of two that brings its largest element near the
 * largest `f16`, which a pass before finds. What is left of an element then is exact unless it is 2^-28 of the largest or
 * less. Products that become `f16` again, gradients of scores, are multiplied by `gradientScale`, which keeps them in range
 * whatever the operands are.
 */
import type { Operand, Pass } from "../kernel.ts";
import { bindings, reduction, type RowLayout } from "../norm/rows.ts";
import type { AttentionShape } from "./shape.ts";

const scaledOperands = ["q", "k", "v", "dO"];
const groups = 64;

/** Scratch for bits of the largest magnitude that each of 64 groups found in q, in k, and so on. */
export const largestOperand = (count: number): Operand => ({
  name: "largest",
  type: "u32",
  length: groups * count,
  access: "scratch",
});

/** Bits of magnitudes order as the magnitudes do, with what is no number on top. */
export function largestPass(operands: readonly Operand[]): Pass {
  const names = scaledOperands.filter((name) => operands.some((operand) => operand.name === name));
  const places = [...names, "largest"].map((name) => operands.findIndex((operand) => operand.name === name));
  const words = places.map((place): Operand => ({ ...operands[place]!, type: "u32" }));
  const code = `
${bindings(words, Object.fromEntries(names.map((name) => [name, "vec4u"])))}
fn mostOf(v: vec4u) -> u32 { return max(max(v.x, v.y), max(v.z, v.w)); }
${reduction({ lanes: 256 } as RowLayout, { name: "merge", type: "u32", merge: "max(a, b)" })}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let first = group.x % ${groups}u * 256u + lane;
  var most = vec4u();
  ${
    names.map((name, i) => `
  if (group.x / ${groups}u == ${i}u) {
    for (var i = first; i < ${words[i]!.length / 8}u; i += ${groups * 256}u) {
      let word = ${name}[i];
      most = max(most, max((word & vec4u(0x7fffu)) << vec4u(16u), word & vec4u(0x7fff0000u)));
    }
  }`).join("")
  }
  let merged = merge(mostOf(most), lane);
  if (lane == 0u) { largest[group.x] = merged; }
}
`;
  return { code, workgroups: [groups * names.length, 1, 1], operands: places };
}

/** What converts words of eight `bf16`. */
export const halvesText = `
fn mostOf(v: vec4u) -> u32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn largestOf(operand: u32) -> u32 {
  var most = vec4u();
  for (var i = 0u; i < ${groups / 4}u; i++) { most = max(most, largest[operand * ${groups / 4}u + i]); }
  return mostOf(most);
}
fn halfPair(w: u32, scale: f32) -> u32 {
  return pack2x16float(vec2f(bitcast<f32>(w << 16u), bitcast<f32>(w & 0xffff0000u)) * scale);
}
fn halves(w: vec4u, scale: f32) -> vec4u {
  return vec4u(halfPair(w.x, scale), halfPair(w.y, scale), halfPair(w.z, scale), halfPair(w.w, scale));
}`;

/**
 * Declares `scale_x` and `unscale_x` of operands. Those of scores are never multiplied by more than 2^30: what is smaller
 * does not tell in an exponent, and what stands for minus infinity must stay that.
 */
export const scalesText = (names: readonly string[]): string =>
  scaledOperands.flatMap((name, i) =>
    !names.includes(name) ? [] : [`
  let exponent_${name} = clamp(268u - (largestOf(${i}u) >> 23u), 1u, ${name === "q" || name === "k" ? 157 : 253}u);
  let scale_${name} = bitcast<f32>(exponent_${name} << 23u);
  let unscale_${name} = bitcast<f32>((254u - exponent_${name}) << 23u);`]
  ).join("");

/**
 * Of gradients of scores. Operands are below 2^15, so that a gradient is below 2 · headDim · 2^30, and times this below
 * 2^15.
 */
export const gradientScale = ({ headDim }: AttentionShape): number => 2 ** -(16 + Math.ceil(Math.log2(headDim)));

/** Whether a shape's operands are scaled. */
export const isScaled = ({ type }: AttentionShape): boolean => type === "bf16";
