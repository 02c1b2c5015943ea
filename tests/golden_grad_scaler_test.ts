/** The dynamic loss scale against InternEvo's, update by update. */
import { assertEquals, assertThrows } from "@std/assert";
import { DynamicGradScaler, type GradScalerOptions, type GradScalerState } from "../src/optimizer/grad_scaler.ts";
import { readGoldenJson } from "./golden_dir.ts";

type Settings = Record<string, number | null>;
type Row = (number | string)[];
const golden = readGoldenJson<{
  defaults: Settings;
  state_columns: string[];
  cases: { settings: Settings; overflow: number[]; states: Row[] }[];
  constructor_errors: { settings: Settings; error?: string; message?: string; ok?: boolean }[];
  save_load: {
    settings: Settings;
    before: number[];
    state_dict: GradScalerState;
    loaded_into_initial_scale: number;
    after: number[];
    states: Row[];
  }[];
}>("internevo", "grad_scaler.json");

function options(settings: Settings): GradScalerOptions {
  const all = { ...golden.defaults, ...settings };
  return {
    initialScale: all.initial_scale!,
    growthFactor: all.growth_factor!,
    backoffFactor: all.backoff_factor!,
    growthInterval: all.growth_interval!,
    minScale: all.min_scale,
    maxScale: all.max_scale,
    hysteresis: all.hysteresis!,
  };
}

/** "inf" as the file writes it, else the `float32` number. */
function number(value: number | string): number {
  return typeof value === "number" ? Math.fround(value) : value === "inf" ? Infinity : -Infinity;
}

function assertRow(scaler: DynamicGradScaler, row: Row, where: string): void {
  const columns: Record<string, number> = {
    scale: scaler.scale,
    growth_step: scaler.growthStep,
    hysteresis_step: scaler.hysteresisStep,
    inv_scale: scaler.inverseScale,
  };
  assertEquals(golden.state_columns.map((name) => columns[name]), row.map(number), where);
}

golden.cases.forEach((entry, index) => {
  Deno.test(`DynamicGradScaler follows grad_scaler.json cases[${index}]`, () => {
    const scaler = new DynamicGradScaler(options(entry.settings));
    entry.overflow.forEach((overflow, i) => {
      scaler.update(overflow === 1);
      assertRow(scaler, entry.states[i], `update ${i}`);
    });
  });
});

golden.constructor_errors.forEach((entry, index) => {
  Deno.test(`DynamicGradScaler judges settings as grad_scaler.json constructor_errors[${index}]`, () => {
    const build = () => new DynamicGradScaler(options(entry.settings));
    const { min_scale: min, max_scale: max } = { ...golden.defaults, ...entry.settings };
    if (typeof max === "number" && max < 0) { // InternEvo tests the lower bound twice and never the upper one
      assertThrows(build, RangeError, typeof min === "number" && min < 0 ? "min_scale" : "max_scale");
    } else if (max && min === null) { // InternEvo compares the absent lower bound with a number
      assertEquals(build().scale, Math.fround(options(entry.settings).initialScale!));
    } else if (entry.error) {
      assertThrows(build, RangeError, Object.keys(entry.settings).find((name) => name !== "max_scale"));
    } else {
      build();
    }
  });
});

golden.save_load.forEach((entry, index) => {
  Deno.test(`DynamicGradScaler.loadStateDict() goes on as grad_scaler.json save_load[${index}]`, () => {
    const saved = new DynamicGradScaler(options(entry.settings));
    for (const overflow of entry.before) saved.update(overflow === 1);
    assertEquals(saved.stateDict(), entry.state_dict);
    const loaded = new DynamicGradScaler(
      options({ ...entry.settings, initial_scale: entry.loaded_into_initial_scale }),
    );
    loaded.loadStateDict(saved.stateDict());
    entry.after.forEach((overflow, i) => {
      loaded.update(overflow === 1);
      assertRow(loaded, entry.states[i], `update ${i}`);
    });
  });
});
