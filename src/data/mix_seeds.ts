/** One seed from several numbers; the constants are those of the 32-bit finaliser of MurmurHash3. */
export function mixSeeds(...numbers: readonly number[]): number {
  let h = 0;
  for (const number of numbers) {
    h = Math.imul(h ^ number, 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    h = (h ^ (h >>> 16)) + 1 | 0;
  }
  return h >>> 0;
}
