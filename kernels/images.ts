/**
 * Operands read as storage textures. llvmpipe reads a storage buffer one lane at a time, through the stack: 57 ns for a
 * number of each of 8 lanes on a Zen 3 core, 218 for a vector of four. A vector of a storage texture takes 7 ns (of a
 * sampled one 21, as levels are looked up at each read), and one more multiplication 0.3. So there a pass may have an
 * operand copied into a texture just before it runs, which costs next to nothing.
 *
 * A texel is a vector of the operand's array, as words. Texels run along rows of a power of two of them (`imageShape`),
 * and each row ends in a cache line of nothing: what lies a power of two apart in the operand would share a set of the
 * cache otherwise, and a product of 1024³ runs at 0.8 of its speed.
 */
import type { ImageBinding } from "./kernel.ts";

/** What a texel of so many words is stored as. */
export const imageFormats = { 1: "r32uint", 2: "rg32uint", 4: "rgba32uint" } as const;

/** How texels lie: `columns` of them in each row but the last, in a texture of `width` by `rows`. */
export interface ImageShape {
  readonly columns: number;
  readonly width: number;
  readonly rows: number;
}

/** The least that rows are long where there are several. A buffer's rows must be multiples of 256 bytes to be copied. */
export const leastColumns = 256;

/** Where so many texels lie. Textures have at least 8192 rows. */
export function imageShape(texels: number, words: ImageBinding["words"]): ImageShape {
  let columns = leastColumns;
  while (columns * 8192 < texels) columns *= 2;
  return columns < texels
    ? { columns, width: columns + 64 / (4 * words), rows: Math.ceil(texels / columns) }
    : { columns, width: texels, rows: 1 };
}

/** Declares image `name`, of so many texels of so many words, at a binding, and `nameTexel(i)`, which reads one. */
export function imageText(name: string, texels: number, words: ImageBinding["words"], binding: number): string {
  const { columns } = imageShape(texels, words);
  return `@group(0) @binding(${binding}) var ${name}Image: texture_storage_2d<${imageFormats[words]}, read>;
fn ${name}Texel(i: u32) -> vec4u {
  return textureLoad(${name}Image, vec2u(i & ${columns - 1}u, i >> ${Math.log2(columns)}u));
}`;
}
