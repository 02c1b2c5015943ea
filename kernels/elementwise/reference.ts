/** Elementwise operators on the host. */
import type { HostArray } from "../kernel.ts";

/** y = a + b */
export function addReference(a: HostArray, b: HostArray, y: HostArray): void {
  for (let i = 0; i < y.length; i++) y[i] = a[i] + b[i];
}

/** x += y */
export function addInPlaceReference(x: HostArray, y: HostArray): void {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** y = factor x */
export function scaleReference(x: HostArray, y: HostArray, factor: number): void {
  for (let i = 0; i < y.length; i++) y[i] = factor * x[i];
}
