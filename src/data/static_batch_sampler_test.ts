import { assertEquals, assertThrows } from "@std/assert";
import { StaticBatchSampler } from "./static_batch_sampler.ts";

// Rounds of 42 rows: nine batches (1, 1, 2, 2 and then 3 rows a rank) in the first, seven in the others.
const options = {
  datasetRows: 45,
  batchSize: 3,
  rampupBatchSize: "1 1 2",
  seed: 5,
  dataRank: 1,
  dataWorldSize: 2,
};

Deno.test("StaticBatchSampler.seek() goes to every batch, the first of a round too", () => {
  const reference = new StaticBatchSampler(options);
  const rounds = [];
  for (let batch = 0; batch < 20; batch++) {
    reference.beginRoundIfExhausted();
    const sought = new StaticBatchSampler(options);
    sought.seek(reference.globalPosition);
    assertEquals(sought.stateDict(), reference.stateDict(), `batch ${batch}`);
    assertEquals([sought.round, sought.length, sought.exhausted], [reference.round, reference.length, false]);
    rounds.push(reference.round);
    assertEquals(sought.next(), reference.next());
  }
  assertEquals(new Set(rounds), new Set([0, 1, 2]));
  assertThrows(() => reference.seek(3), RangeError, "No batch begins at row 3");
});

Deno.test("StaticBatchSampler goes on with batches of another size, all of them whole, and counts rows as they were", () => {
  const of = (batchSize: number) =>
    new StaticBatchSampler({ datasetRows: 11, batchSize, seed: 5, dataRank: 0, dataWorldSize: 1 });
  // Batches of 2 use ten rows of eleven, batches of 4 eight; the last of these places is past eight.
  for (const before of [3, 5]) {
    const first = of(2), seen: number[] = [];
    for (let batch = 0; batch < before; batch++) seen.push(...first.next().indices);
    const { round, numConsumedSamplesInEpoch, batchCount, globalPosition: position } = first;
    const second = of(4), rest = Math.floor((8 - 2 * before) / 4) * 4;
    second.restore({ round, numConsumedSamplesInEpoch, batchCount, position });
    assertEquals(second.globalPosition, 2 * before);
    for (let rows = 0; rows < rest; rows += 4) seen.push(...second.next().indices);
    assertEquals(new Set(seen).size, seen.length, "no row twice in a round");
    const { indices } = second.next();
    assertEquals([indices.length, second.round, second.globalPosition], [4, 1, 2 * before + Math.max(0, rest) + 4]);
  }
});
