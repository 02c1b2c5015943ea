import { assertThrows } from "@std/assert";
import { checkKernel, floatTypes, randomNormal } from "../testing.ts";
import { slice, unslice } from "./mod.ts";

for (const type of floatTypes) {
  Deno.test(`slice() and unslice() match their references in ${type}`, async () => {
    for (
      const [outer, whole, first, part] of [[1, 1, 0, 1], [5, 7, 3, 2], [3, 12, 4, 8], [3, 12, 2, 8], [300, 9, 0, 9]]
    ) {
      await checkKernel(slice({ outer, whole, first, part, type }), { x: randomNormal(outer * whole, 1) });
      await checkKernel(unslice({ outer, whole, first, part, type }), { x: randomNormal(outer * part, 1) });
    }
  });
}

Deno.test("slice() refuses a run that leaves the row", () => {
  assertThrows(
    () => slice({ outer: 1, whole: 4, first: 3, part: 2 }),
    RangeError,
    "columns 3 to 5 are not of a row of 4",
  );
  assertThrows(() => slice({ outer: 0, whole: 4, first: 0, part: 2 }), RangeError, "outer must be");
});
