import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { type Box, boxesOfFlatRange, boxFault, copyRuns, coverFault, intersect, wholeBox } from "./box.ts";

/** Global flat indices of a box, in the box's own row-major order. */
function indices(shape: readonly number[], { offset, extent }: Box): number[] {
  let list = [0];
  for (let axis = 0; axis < shape.length; axis++) {
    list = list.flatMap((base) =>
      Array.from({ length: extent[axis] }, (_, i) => base * shape[axis] + offset[axis] + i)
    );
  }
  return list;
}

Deno.test("boxesOfFlatRange() cuts every range of a tensor into boxes that hold it in order", () => {
  for (const shape of [[], [1], [5], [3, 4], [2, 3, 4], [2, 1, 3, 2]]) {
    const total = shape.reduce((a, b) => a * b, 1);
    for (let begin = 0; begin <= total; begin++) {
      for (let end = begin; end <= total; end++) {
        const boxes = boxesOfFlatRange(shape, begin, end);
        assertEquals(
          boxes.flatMap((box) => indices(shape, box)),
          Array.from({ length: end - begin }, (_, i) => begin + i),
        );
        assertEquals(boxes.map((box) => boxFault(shape, box)), boxes.map(() => undefined));
      }
    }
  }
  assertThrows(() => boxesOfFlatRange([2, 2], 1, 5), RangeError, "elements 1 to 5 of a tensor of 4");
});

Deno.test("coverFault() accepts exact covers and names overlaps, gaps and boxes outside", () => {
  const halves: Box[] = [{ offset: [0, 0], extent: [2, 3] }, { offset: [2, 0], extent: [1, 3] }];
  assertEquals(coverFault([3, 3], halves), undefined);
  assertEquals(coverFault([], [wholeBox([])]), undefined);
  assertEquals(coverFault([4], boxesOfFlatRange([4], 0, 4)), undefined);
  assertStringIncludes(coverFault([3, 3], [halves[0]])!, "6 of the 9 elements");
  assertStringIncludes(coverFault([3, 3], [])!, "0 of the 9 elements");
  assertStringIncludes(coverFault([3, 3], [halves[0], { offset: [1, 2], extent: [1, 1] }])!, "overlap");
  assertStringIncludes(coverFault([], [wholeBox([]), wholeBox([])])!, "overlap");
  assertStringIncludes(coverFault([3, 3], [{ offset: [2, 0], extent: [2, 3] }])!, "no box inside the shape [3,3]");
  assertStringIncludes(coverFault([3], [{ offset: [0], extent: [0] }])!, "no box");
  assertStringIncludes(coverFault([3], [{ offset: [0, 0], extent: [1, 1] }])!, "no box");
});

Deno.test("copyRuns() moves the intersection of two boxes element by element", () => {
  const shape = [3, 4, 5];
  const boxes: Box[] = [
    wholeBox(shape),
    { offset: [1, 0, 0], extent: [2, 4, 5] },
    { offset: [0, 1, 0], extent: [3, 2, 5] },
    { offset: [0, 0, 2], extent: [3, 4, 2] },
    { offset: [1, 2, 3], extent: [1, 2, 2] },
  ];
  for (const source of boxes) {
    for (const target of boxes) {
      const common = intersect(source, target);
      if (common === undefined) continue;
      const sourceIndices = indices(shape, source);
      const targetIndices = indices(shape, target);
      const wanted = new Set(indices(shape, common));
      const { length, source: from, target: to } = copyRuns(source, target, common);
      const seen = new Set<number>();
      for (let run = 0; run < from.length; run++) {
        for (let i = 0; i < length; i++) {
          assertEquals(sourceIndices[from[run] + i], targetIndices[to[run] + i]);
          seen.add(sourceIndices[from[run] + i]);
        }
      }
      assertEquals(seen, wanted);
    }
  }
});

Deno.test("intersect() is undefined for boxes that only touch", () => {
  assertEquals(intersect({ offset: [0], extent: [2] }, { offset: [2], extent: [2] }), undefined);
  assertEquals(intersect(wholeBox([]), wholeBox([])), wholeBox([]));
});
