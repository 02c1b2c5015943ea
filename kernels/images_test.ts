import { assert, assertEquals } from "@std/assert";
import { add, addInPlace } from "./elementwise/mod.ts";
import { imageShape, leastColumns } from "./images.ts";
import type { DeviceTraits } from "./kernel.ts";
import { checkKernel, floatTypes, randomNormal } from "./testing.ts";

Deno.test("operands read as images arrive whole, rows of texels and the rest of one", async () => {
  for (const type of floatTypes) {
    for (const length of [4, 4 * leastColumns, 4 * (2 * leastColumns + 3)]) {
      const x = randomNormal(length, 1), y = randomNormal(length, 2);
      await checkKernel(add({ length, type }), { a: x, b: y });
      await checkKernel(addInPlace({ length, type }), { x, y }); // read as an image, written as a buffer
    }
  }
});

Deno.test("imageShape() has room for every texel, and ends rows with a cache line that nothing is in", () => {
  assertEquals(imageShape(5, 4), { columns: leastColumns, width: 5, rows: 1 });
  assertEquals(imageShape(leastColumns, 4), { columns: leastColumns, width: leastColumns, rows: 1 });
  assertEquals(imageShape(leastColumns + 1, 4), { columns: leastColumns, width: leastColumns + 4, rows: 2 });
  assertEquals(imageShape(leastColumns + 1, 1), { columns: leastColumns, width: leastColumns + 16, rows: 2 });
  // Where that would be more rows than a texture has, rows are longer.
  for (const texels of [8192 * leastColumns, 8192 * leastColumns + 1, 38_633_472]) {
    const { columns, rows } = imageShape(texels, 2);
    assert(columns * rows >= texels && columns * (rows - 1) < texels && rows <= 8192);
  }
});

Deno.test("only a rasteriser in software whose images are cheap is given any", () => {
  const features = { shaderF16: true }, limits = { maxComputeWorkgroupsPerDimension: 65_535 };
  const traits = { software: true, imageReads: true, features, limits } as DeviceTraits;
  const images = (changes: Partial<DeviceTraits>, type: "f32" | "f16" = "f32", length = 8) =>
    add({ length, type }).passes({ ...traits, ...changes })[0].images;
  assertEquals(images({}), [{ operand: 0, words: 4 }, { operand: 1, words: 4 }]);
  assertEquals(images({}, "f16"), [{ operand: 0, words: 2 }, { operand: 1, words: 2 }]);
  assertEquals(images({}, "f16", 7), undefined); // elements share words
  assertEquals(images({ imageReads: false }), undefined);
  assertEquals(images({ software: false }), undefined);
});
