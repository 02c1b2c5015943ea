import { assertEquals, assertThrows } from "@std/assert";
import { boxOf, layoutOf, replicated, split } from "./layout.ts";
import { type Axis, type Mesh, singleRank } from "./mesh.ts";

const mesh = (axis: Axis, size: number, index: number): Mesh => ({
  ...singleRank,
  world: size,
  rank: index,
  size: (asked) => asked === axis ? size : 1,
  index: (asked) => asked === axis ? index : 0,
});

Deno.test("layoutOf() finds the one pattern that fits", () => {
  const plan = {
    "layers.*.q.*": split(0, "tensor"),
    "layers.*.o.weight": split(1, "tensor"),
    "norm.weight": replicated(),
  };
  assertEquals(layoutOf("layers.0.q.weight", plan), split(0, "tensor"));
  assertEquals(layoutOf("layers.12.q.bias", plan), split(0, "tensor"));
  assertEquals(layoutOf("layers.12.attention.o.weight", plan), split(1, "tensor"), "a star stands for several parts");
  assertEquals(layoutOf("norm.weight", plan), replicated());
});

Deno.test("layoutOf() refuses a name that no pattern fits, or more than one", () => {
  const plan = { "layers.*": replicated(), "*.weight": replicated(), "norm.weight": replicated() };
  assertThrows(() => layoutOf("head.bias", plan), TypeError, "head.bias: no pattern");
  assertThrows(() => layoutOf("layers.0.weight", plan), TypeError, "patterns layers.*, *.weight");
  assertThrows(() => layoutOf("normXweight", { "norm.weight": replicated() }), TypeError, "no pattern");
});

Deno.test("boxOf() is whole where nothing is split, and a rank's part where it is", () => {
  assertEquals(boxOf([6, 4], replicated(), mesh("tensor", 2, 1)), { shape: [6, 4], offset: [0, 0], extent: [6, 4] });
  assertEquals(boxOf([6, 4], split(0, "tensor"), singleRank), { shape: [6, 4], offset: [0, 0], extent: [6, 4] });
  assertEquals(boxOf([6, 4], split(0, "tensor"), mesh("data", 2, 1)).extent, [6, 4], "another axis");
  for (const dimension of [0, 1]) {
    const boxes = [0, 1].map((index) => boxOf([6, 4], split(dimension, "tensor"), mesh("tensor", 2, index)));
    assertEquals(boxes.map(({ extent }) => extent[dimension]), [6, 4].map(() => [6, 4][dimension] / 2));
    assertEquals(boxes.map(({ offset }) => offset[dimension]), [0, [6, 4][dimension] / 2]);
    assertEquals(boxes.map(({ extent }) => extent[1 - dimension]), [0, 1].map(() => [6, 4][1 - dimension]));
  }
});

Deno.test("boxOf() refuses an uneven split with the numbers", () => {
  assertThrows(
    () => boxOf([6, 4], split(1, "tensor"), mesh("tensor", 3, 0)),
    RangeError,
    "dimension 1 of [6,4] over tensor: 4 is no multiple of 3",
  );
});
