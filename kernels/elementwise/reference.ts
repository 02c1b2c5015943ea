/** Elementwise operators on the host. */
import type { HostArray } from "../kernel.ts";
import { dropThreshold, pcg4d } from "./counter_random.ts";

/** y = a + b */
export function addReference(a: HostArray, b: HostArray, y: HostArray): void {
  for (let i = 0; i < y.length; i++) y[i] = a[i] + b[i];
}

/** y = a b */
export function multiplyReference(a: HostArray, b: HostArray, y: HostArray): void {
  for (let i = 0; i < y.length; i++) y[i] = a[i] * b[i];
}

/** x += y */
export function addInPlaceReference(x: HostArray, y: HostArray): void {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** y = factor x */
export function scaleReference(x: HostArray, y: HostArray, factor: number): void {
  for (let i = 0; i < y.length; i++) y[i] = factor * x[i];
}

/** y = x; whoever stores y rounds it. */
export function castReference(x: HostArray, y: HostArray): void {
  y.set(x);
}

/** y = x / (1 - rate) where kept, else 0. `counter` is [seed, step]. */
export function dropoutReference(
  x: HostArray,
  counter: HostArray,
  y: HostArray,
  { rate, layer, firstElement }: { rate: number; layer: number; firstElement: number },
): void {
  const threshold = dropThreshold(rate);
  const factor = Math.fround(1 / (1 - rate));
  const end = firstElement + y.length;
  for (let quad = Math.floor(firstElement / 4); 4 * quad < end; quad++) {
    const words = pcg4d(quad, layer, counter[1], counter[0]);
    for (let at = Math.max(4 * quad, firstElement); at < Math.min(4 * quad + 4, end); at++) {
      y[at - firstElement] = words[at - 4 * quad] < threshold ? 0 : x[at - firstElement] * factor;
    }
  }
}
