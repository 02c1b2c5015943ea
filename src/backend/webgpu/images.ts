/**
 * Textures that passes read operands from (`kernels/images.ts`). A texture of each size and place among a pass's images
 * serves all passes: it is filled just before each, in the order of the queue. They are the driver's working memory, like
 * staging buffers, and exist on rasterisers in software alone.
 */
import { imageFormats, imageShape } from "../../../kernels/images.ts";
import type { ImageBinding } from "../../../kernels/kernel.ts";

/** An operand as a texture. */
export interface Image {
  readonly id: number;
  readonly view: GPUTextureView;
  fill(encoder: GPUCommandEncoder): void;
}

export interface Images {
  /** @param index place among the images of a pass */
  of(
    source: { readonly gpu: GPUBuffer; readonly offset: number },
    options: { readonly words: ImageBinding["words"]; readonly bytes: number; readonly index: number },
  ): Image;
}

export function createImages(device: GPUDevice): Images {
  const textures = new Map<string, { id: number; texture: GPUTexture; view: GPUTextureView }>();
  return {
    of({ gpu, offset }, { words, bytes, index }) {
      const texels = bytes / (4 * words), { columns, width, rows } = imageShape(texels, words);
      const key = `${index} ${words} ${width} ${rows}`;
      let known = textures.get(key);
      if (known === undefined) {
        const texture = device.createTexture({
          label: `image ${key}`,
          size: { width, height: rows },
          format: imageFormats[words],
          usage: GPUTextureUsage.STORAGE_BINDING | GPUTextureUsage.COPY_DST,
        });
        textures.set(key, known = { id: textures.size, texture, view: texture.createView() });
      }
      const { id, texture, view } = known;
      const bytesPerRow = 4 * words * columns, whole = Math.floor(texels / columns), rest = texels % columns;
      return {
        id,
        view,
        fill(encoder) {
          if (whole > 0) {
            encoder.copyBufferToTexture({ buffer: gpu, offset, bytesPerRow, rowsPerImage: whole }, { texture }, {
              width: columns,
              height: whole,
            });
          }
          if (rest > 0) {
            const source = { buffer: gpu, offset: offset + whole * bytesPerRow, bytesPerRow };
            encoder.copyBufferToTexture(source, { texture, origin: { x: 0, y: whole } }, { width: rest, height: 1 });
          }
        },
      };
    },
  };
}
