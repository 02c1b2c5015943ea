import { assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { FineTuneCosineAnnealingWarmupLR, type LearningRateOptions } from "./learning_rate.ts";

const options: LearningRateOptions = {
  baseLearningRate: 1e-4,
  totalSteps: 50_000,
  warmupRatio: 0.01,
  etaMin: 1e-5,
};

Deno.test("FineTuneCosineAnnealingWarmupLR.at() gives the documented points of the schedule", () => {
  const schedule = new FineTuneCosineAnnealingWarmupLR(options);
  assertAlmostEquals(schedule.at(0), 2e-7, 1e-19);
  assertEquals([499, 500, 50_000].map((n) => schedule.at(n)), [1e-4, 1e-4, 1e-5]);
});

Deno.test("FineTuneCosineAnnealingWarmupLR starts the cosine at the base rate after steps at rate 0", () => {
  const schedule = new FineTuneCosineAnnealingWarmupLR({ baseLearningRate: 1, totalSteps: 6, initSteps: 2 });
  assertEquals([0, 1, 2, 4, 6].map((n) => +schedule.at(n).toFixed(12)), [0, 0, 1, 0.5, 0]);
});

Deno.test("FineTuneCosineAnnealingWarmupLR.loadStateDict() goes on bit for bit, twice, also after a rate change", () => {
  const first = new FineTuneCosineAnnealingWarmupLR(options);
  for (let i = 0; i < 20_000; i++) first.step();
  const second = new FineTuneCosineAnnealingWarmupLR({ ...options, baseLearningRate: 5e-5 });
  second.loadStateDict(first.stateDict());
  for (let i = 0; i < 100; i++) second.step();
  const third = new FineTuneCosineAnnealingWarmupLR({ ...options, baseLearningRate: 5e-5 });
  third.loadStateDict(JSON.parse(JSON.stringify(second.stateDict())));
  for (let i = 0; i < 40_000; i += 1000) {
    assertEquals(third.at(20_100 + i), second.at(20_100 + i));
  }
  assertEquals(third.steps, 20_100);
});

Deno.test("FineTuneCosineAnnealingWarmupLR obeys a longer total_steps on resume", () => {
  const short = new FineTuneCosineAnnealingWarmupLR({ baseLearningRate: 1, totalSteps: 10 });
  for (let i = 0; i < 10; i++) short.step();
  const long = new FineTuneCosineAnnealingWarmupLR({ baseLearningRate: 1, totalSteps: 20 });
  long.loadStateDict(short.stateDict());
  assertEquals(long.learningRate, long.at(10));
  assertEquals(+long.learningRate.toFixed(12), 0.5);
});

Deno.test("FineTuneCosineAnnealingWarmupLR refuses what no schedule can be made of", () => {
  const bad: [Partial<LearningRateOptions>, string][] = [
    [{ totalSteps: 0 }, "total_steps"],
    [{ totalSteps: 1.5 }, "total_steps"],
    [{ initSteps: -1 }, "init_steps"],
    [{ warmupRatio: 1.1 }, "warmup_ratio"],
    [{ warmupRatio: 1 }, "lower init_steps or warmup_ratio"],
    [{ baseLearningRate: NaN }, "adam.lr"],
    [{ etaMin: -1 }, "eta_min"],
  ];
  for (const [change, message] of bad) {
    assertThrows(() => new FineTuneCosineAnnealingWarmupLR({ ...options, ...change }), RangeError, message);
  }
  // deno-lint-ignore no-explicit-any -- a damaged state
  assertThrows(() => new FineTuneCosineAnnealingWarmupLR(options).loadStateDict({} as any), TypeError, "last_epoch");
});
