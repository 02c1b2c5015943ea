/**
 * Rounds to `digits` decimals, exact ties to even, as the reference's reports are rounded.
 *
 * @example
 * ```ts
 * import { roundTo } from "./round.ts";
 * console.assert(roundTo(1 / 32, 4) === 0.0312 && roundTo(2 / 3, 2) === 0.67);
 * ```
 */
export function roundTo(value: number, digits: number): number {
  if (!Number.isFinite(value)) return value;
  // A tie must be a dyadic number, so this product is exact and odd for ties and only for them.
  const doubled = value * 2 ** (digits + 1);
  if (Number.isInteger(doubled) && doubled % 2 !== 0) {
    const floor = Math.floor(value * 10 ** digits);
    return (floor % 2 === 0 ? floor : floor + 1) / 10 ** digits;
  }
  return Number(value.toFixed(digits));
}
