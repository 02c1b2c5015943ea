/**
 * Sample indices of one data-parallel rank, in order: `rank`, `rank + worldSize`, …. With `dropLast` every rank has
 * `floor(samples / worldSize)`; without, the list is filled up from its beginning so that all ranks have as many.
 */
export function dataParallelIndices(
  options: { samples: number; rank: number; worldSize: number; dropLast?: boolean },
): Uint32Array<ArrayBuffer> {
  const { samples, rank, worldSize, dropLast = true } = options;
  if (!(Number.isInteger(worldSize) && rank >= 0 && rank < worldSize)) {
    throw new RangeError(`Rank ${rank} is not one of ${worldSize} data-parallel ranks`);
  }
  const each = samples === 0 ? 0 : dropLast ? Math.floor(samples / worldSize) : Math.ceil(samples / worldSize);
  return Uint32Array.from({ length: each }, (_, i) => (rank + i * worldSize) % samples);
}
