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
