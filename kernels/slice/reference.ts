/** Slices on the host. */
import type { HostArray } from "../kernel.ts";

interface Sizes {
  readonly outer: number;
  readonly whole: number;
  readonly first: number;
  readonly part: number;
}

/** y[o, i] = x[o, first + i] */
export function sliceReference(
  { outer, whole, first, part }: Sizes,
  [x, y]: readonly HostArray[],
): void {
  for (let o = 0; o < outer; o++) y.set(x.subarray(o * whole + first, o * whole + first + part), o * part);
}

/** y[o, first + i] = x[o, i], and 0 elsewhere. */
export function unsliceReference({ outer, whole, first, part }: Sizes, [x, y]: readonly HostArray[]): void {
  y.fill(0);
  for (let o = 0; o < outer; o++) y.set(x.subarray(o * part, (o + 1) * part), o * whole + first);
}
