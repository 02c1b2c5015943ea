/** The beta2 schedule against InternEvo's, step by step. */
import { assertAlmostEquals, assertEquals } from "@std/assert";
import { Beta2Scheduler } from "../src/optimizer/beta2.ts";
import { readGoldenJson } from "./golden_dir.ts";

interface Settings {
  init_beta2: number;
  c: number;
  cur_iter?: number;
  optimizer_beta2_at_start?: number;
}
const golden = readGoldenJson<{
  cases: (Settings & { beta2: number[]; final_cur_iter: number })[];
  explicit_cur_iter: (Settings & {
    steps: { arg: number | null; beta2: number; cur_iter: number; error?: string }[];
  })[];
}>("internevo", "beta2_scheduler.json");

function build(settings: Settings): Beta2Scheduler {
  return new Beta2Scheduler({
    initBeta2: settings.init_beta2,
    c: settings.c,
    curIter: settings.cur_iter ?? -1,
    optimizerBeta2: settings.optimizer_beta2_at_start ?? settings.init_beta2,
  });
}

golden.cases.forEach((entry, index) => {
  Deno.test(`Beta2Scheduler follows beta2_scheduler.json cases[${index}]`, () => {
    const schedule = build(entry);
    entry.beta2.forEach((beta2, n) => {
      if (n > 0) schedule.step();
      assertAlmostEquals(schedule.beta2, beta2, 1e-14, `after ${n} steps`);
    });
    assertEquals(schedule.curIter, entry.final_cur_iter);
  });
});

golden.explicit_cur_iter.forEach((entry, index) => {
  Deno.test(`Beta2Scheduler.step() takes the iteration as beta2_scheduler.json explicit_cur_iter[${index}]`, () => {
    const schedule = build(entry);
    for (const step of entry.steps) {
      if (step.arg === null) schedule.step();
      else schedule.step(step.arg);
      assertEquals(schedule.curIter, step.cur_iter);
      // ⚠: at iteration 0 InternEvo divides by zero; the schedule has its starting value there.
      const expected = step.arg === 0 && entry.c > 0 ? entry.init_beta2 : step.beta2;
      assertAlmostEquals(schedule.beta2, expected, 1e-14, `at iteration ${step.cur_iter}`);
    }
  });
});
