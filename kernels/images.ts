/**
 * Operands read as textures. llvmpipe reads a storage buffer one lane at a time, through the stack: 57 ns for a number of
 * each of 8 lanes on a Zen 3 core, where one of a texture of four takes 5 ns and one more multiplication 0.3. So there a
 * pass may have an operand copied into a texture just before it runs, which costs next to nothing.
 *
 * A texel is a vector of the operand's array, as words; texels run along rows of `imageWidth`.
 */
export const imageWidth = 4096;
const imageShift = Math.log2(imageWidth);

/** Size of the texture that holds so many texels. */
export const imageSize = (texels: number): { readonly width: number; readonly height: number } => ({
  width: Math.min(texels, imageWidth),
  height: Math.ceil(texels / imageWidth),
});

/** Declares image `name` at a binding, and `nameTexel(i)`, which reads one. */
export const imageText = (name: string, binding: number): string =>
  `@group(0) @binding(${binding}) var ${name}Image: texture_2d<u32>;
fn ${name}Texel(i: u32) -> vec4u {
  return textureLoad(${name}Image, vec2u(i & ${imageWidth - 1}u, i >> ${imageShift}u), 0);
}`;
