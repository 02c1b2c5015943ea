/** Amounts of memory as people write them. */

const units: Readonly<Record<string, number>> = {
  "": 1,
  b: 1,
  k: 2 ** 10,
  kib: 2 ** 10,
  kb: 1e3,
  m: 2 ** 20,
  mib: 2 ** 20,
  mb: 1e6,
  g: 2 ** 30,
  gib: 2 ** 30,
  gb: 1e9,
  t: 2 ** 40,
  tib: 2 ** 40,
  tb: 1e12,
};

/**
 * `80GiB`, `1.5 TiB`, `128M` (of 1024²), `2GB` (of 1000³), `4096`: bytes, or undefined for what is no such amount.
 *
 * @example
 * ```ts
 * import { parseBytes } from "./bytes.ts";
 * console.assert(parseBytes("80GiB") === 80 * 2 ** 30);
 * console.assert(parseBytes("many") === undefined);
 * ```
 */
export function parseBytes(text: string): number | undefined {
  const [, number, unit] = /^\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*$/i.exec(text) ?? [];
  const factor = units[unit?.toLowerCase() ?? "?"];
  const bytes = Math.floor(Number(number) * (factor ?? NaN));
  return Number.isSafeInteger(bytes) && bytes > 0 ? bytes : undefined;
}
