import { assertEquals } from "@std/assert";
import { add, addInPlace } from "./elementwise/mod.ts";
import { imageSize, imageWidth } from "./images.ts";
import type { DeviceTraits } from "./kernel.ts";
import { checkKernel, floatTypes, randomNormal } from "./testing.ts";

Deno.test("operands read as images arrive whole, rows of texels and the rest of one", async () => {
  for (const type of floatTypes) {
    for (const length of [4, 4 * imageWidth, 4 * (2 * imageWidth + 3)]) {
      const x = randomNormal(length, 1), y = randomNormal(length, 2);
      await checkKernel(add({ length, type }), { a: x, b: y });
      await checkKernel(addInPlace({ length, type }), { x, y }); // read as an image, written as a buffer
    }
  }
});

Deno.test("imageSize() has room for every texel", () => {
  assertEquals(imageSize(5), { width: 5, height: 1 });
  assertEquals(imageSize(imageWidth + 1), { width: imageWidth, height: 2 });
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
