/** Random numbers by counter, on the host: the oracle of the kernel beside this file. */
import { pcg4d } from "../elementwise/counter_random.ts";
import type { HostArray } from "../kernel.ts";

/** counter → y: the middle of one of 2²³ steps of the interval, so that neither end is ever drawn. */
export function counterUniform(
  { stream, low, high }: { readonly stream: number; readonly low: number; readonly high: number },
  [counter, y]: readonly HostArray[],
): void {
  for (let i = 0; i < y.length; i += 4) {
    const words = pcg4d(i / 4, stream, counter[1], counter[0]);
    for (let j = i; j < Math.min(i + 4, y.length); j++) {
      y[j] = low + (high - low) * ((words[j - i] >>> 9) + 0.5) * 2 ** -23;
    }
  }
}
