/** The learning-rate schedule against InternEvo's, step by step. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { FineTuneCosineAnnealingWarmupLR, type LearningRateState } from "../src/optimizer/learning_rate.ts";
import { readGoldenJson } from "./golden_dir.ts";

interface Config {
  total_steps: number;
  init_steps?: number;
  warmup_ratio?: number;
  eta_min?: number;
  last_epoch?: number;
}
interface Case {
  base_lr: number;
  config: Config;
  steps?: number;
  result?: {
    lr?: number[];
    lr_at?: Record<string, number>;
    finished_first_true_at?: number;
    state_after_last?: LearningRateState;
  };
  error?: string;
  message?: string;
}
interface Resume {
  base_lr?: number;
  saved_base_lr?: number;
  new_lr?: number;
  config: Config;
  saved_after_steps: number;
  state: LearningRateState;
  lr_before?: number[];
  lr_after_load: number[];
}
const golden = readGoldenJson<{
  cases: Case[];
  ctor_last_epoch: Case[];
  resume_state_dict: Resume[];
  resume_load_scheduler: Resume[];
}>("internevo", "lr_scheduler.json");

function build(baseLearningRate: number, config: Config): FineTuneCosineAnnealingWarmupLR {
  return new FineTuneCosineAnnealingWarmupLR({
    baseLearningRate,
    totalSteps: config.total_steps,
    initSteps: config.init_steps ?? 0,
    warmupRatio: config.warmup_ratio ?? 0,
    etaMin: config.eta_min ?? 0,
    lastEpoch: config.last_epoch ?? -1,
  });
}

/**
 * The reference's chain loses relative precision where a rate nears 0 (each value is a quotient of two small numbers),
 * so rates below a hundredth of the base are compared to that hundredth.
 */
function assertRate(actual: number, expected: number, base: number, where: string): void {
  const limit = 1e-12 * Math.max(Math.abs(expected), base / 100);
  assert(Math.abs(actual - expected) <= limit, `${where}: ${actual} instead of ${expected}`);
}

/** Rates by number of steps, however the file lists them. */
function expectedRates(result: NonNullable<Case["result"]>): [number, number][] {
  if (result.lr_at) return Object.entries(result.lr_at).map(([n, rate]) => [Number(n), rate]);
  return result.lr!.map((rate, n) => [n, rate]);
}

/** torch's chained cosine, started from the base rate: what InternEvo means to do after steps at rate 0. */
function chainedCosine(base: number, etaMin: number, steps: number, count: number): number[] {
  const rates = [base];
  for (let t = 1; t < count; t++) {
    const last = rates[t - 1];
    rates.push(
      (t - 1 - steps) % (2 * steps) === 0
        ? last + (base - etaMin) * (1 - Math.cos(Math.PI / steps)) / 2
        : (1 + Math.cos(Math.PI * t / steps)) / (1 + Math.cos(Math.PI * (t - 1) / steps)) * (last - etaMin) + etaMin,
    );
  }
  return rates;
}

const sections: [string, Case[]][] = [["cases", golden.cases], ["ctor_last_epoch", golden.ctor_last_epoch]];
for (const [section, cases] of sections) {
  cases.forEach((entry, index) => {
    const where = `${section}[${index}]`;
    Deno.test(`FineTuneCosineAnnealingWarmupLR follows lr_scheduler.json ${where}`, () => {
      const { base_lr: base, config, result } = entry;
      if (entry.error === "KeyError") {
        console.log(`  skipped: ${entry.message} (the schedule is given its base rate)`);
        return;
      }
      if (!result) {
        assertThrows(() => build(base, config), RangeError, "warm-up steps");
        return;
      }
      const schedule = build(base, config);
      const initSteps = config.init_steps ?? 0;
      if (initSteps > 0 && schedule.warmupSteps === 0) { // ⚠: InternEvo's cosine starts from 0 there
        const count = expectedRates(result).length - initSteps;
        const chain = chainedCosine(base, config.eta_min ?? 0, schedule.cosineSteps, count);
        for (const [n] of expectedRates(result)) {
          assertRate(schedule.at(n), n < initSteps ? 0 : chain[n - initSteps], base, `${where} after ${n} steps`);
        }
        return;
      }
      const rates = new Map(expectedRates(result));
      const last = Math.max(...rates.keys());
      for (let n = 0;; n++, schedule.step()) {
        if (rates.has(n)) assertRate(schedule.learningRate, rates.get(n)!, base, `${where} after ${n} steps`);
        if (n === result.finished_first_true_at) assert(schedule.stateDict().finished, where);
        if (n < (result.finished_first_true_at ?? 0)) assert(!schedule.stateDict().finished, where);
        if (n === last) break;
      }
      if (result.state_after_last) assertState(schedule.stateDict(), result.state_after_last);
    });
  });
}

function assertState(actual: LearningRateState, expected: LearningRateState): void {
  const pick = (state: LearningRateState) => {
    const { base_lrs, eta_min, T_max, last_epoch } = state.after_scheduler_dict;
    return {
      base_lrs: state.base_lrs,
      last_epoch: state.last_epoch,
      warmup_epochs: state.warmup_epochs,
      finished: state.finished,
      after_scheduler_type: state.after_scheduler_type,
      after: { base_lrs, eta_min, T_max, last_epoch },
    };
  };
  assertEquals(pick(actual), pick(expected));
}

const resumes: [string, Resume[]][] = [
  ["resume_state_dict", golden.resume_state_dict],
  ["resume_load_scheduler", golden.resume_load_scheduler],
];
for (const [section, cases] of resumes) {
  cases.forEach((entry, index) => {
    const where = `${section}[${index}]`;
    Deno.test(`FineTuneCosineAnnealingWarmupLR resumes as lr_scheduler.json ${where}`, () => {
      const saved = build((entry.base_lr ?? entry.saved_base_lr)!, entry.config);
      for (let n = 0; n < entry.saved_after_steps; n++) {
        if (entry.lr_before) assertRate(saved.learningRate, entry.lr_before[n], saved.baseLearningRate, where);
        saved.step();
      }
      assertState(saved.stateDict(), entry.state);
      // Both our own state and InternEvo's must lead to the same rates.
      for (const state of [saved.stateDict(), entry.state]) {
        const loaded = build((entry.base_lr ?? entry.new_lr)!, entry.config);
        loaded.loadStateDict(state);
        if ((entry.config.init_steps ?? 0) > 0 && loaded.warmupSteps === 0) { // ⚠, as above
          for (const _ of entry.lr_after_load) {
            assertRate(loaded.learningRate, build(loaded.baseLearningRate, entry.config).at(loaded.steps), 1, where);
            loaded.step();
          }
          continue;
        }
        entry.lr_after_load.forEach((rate, i) => {
          assertRate(loaded.learningRate, rate, loaded.baseLearningRate, `${where}, ${i} steps after the load`);
          loaded.step();
        });
      }
    });
  });
}
