/** Slices on the host. */
import type { HostArray } from "../kernel.ts";

/** y[o, i] = x[o, first + i] */
export function sliceReference(
  { outer, whole, first, part }: { outer: number; whole: number; first: number; part: number },
  [x, y]: readonly HostArray[],
): void {
  for (let o = 0; o < outer; o++) y.set(x.subarray(o * whole + first, o * whole + first + part), o * part);
}
