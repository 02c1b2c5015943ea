import { assertEquals, assertThrows } from "@std/assert";
import { Beta2Scheduler } from "./beta2.ts";

Deno.test("Beta2Scheduler.loadStateDict() goes on where the saved schedule stood", () => {
  const saved = new Beta2Scheduler({ initBeta2: 0.5, c: 0.8 });
  for (let i = 0; i < 30; i++) saved.step();
  const loaded = new Beta2Scheduler({ initBeta2: 0.5, c: 0.8 });
  loaded.loadStateDict(JSON.parse(JSON.stringify(saved.stateDict())));
  assertEquals(loaded.beta2, saved.beta2);
  saved.step();
  loaded.step();
  assertEquals(loaded.beta2, saved.beta2);
  assertEquals(loaded.curIter, 31);

  // A record changed between two starts is obeyed at once.
  const changed = new Beta2Scheduler({ initBeta2: 0.99, c: 0 });
  changed.loadStateDict(saved.stateDict());
  assertEquals([changed.curIter, changed.beta2], [31, 0.99]);
});

Deno.test("Beta2Scheduler refuses values outside [0, 1), negative iterations and a damaged state", () => {
  assertThrows(() => new Beta2Scheduler({ initBeta2: 1 }), RangeError, "init_beta2");
  assertThrows(() => new Beta2Scheduler({ initBeta2: 0.9, c: NaN }), RangeError, "c must be");
  assertThrows(() => new Beta2Scheduler({ initBeta2: 0.9 }).step(-3), RangeError, "cur_iter");
  assertThrows(() => new Beta2Scheduler({ initBeta2: 0.9 }).loadStateDict({ cur_iter: 1, beta2: 2 }), TypeError);
});
