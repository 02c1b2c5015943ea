import { assertEquals, assertThrows } from "@std/assert";
import { DynamicGradScaler } from "./grad_scaler.ts";

Deno.test("DynamicGradScaler keeps 1 for float32 whatever happens", () => {
  const scaler = new DynamicGradScaler({ dtype: "float32", growthInterval: 1 });
  for (const overflow of [true, true, false, true]) scaler.update(overflow);
  scaler.loadStateDict({ _scale: 512, _growth_step: 1, _hysteresis_step: 1 });
  assertEquals([scaler.scale, scaler.growthStep, scaler.hysteresisStep], [1, 0, 0]);
});

Deno.test("DynamicGradScaler lets bfloat16 have factors of 1 and warns of others", () => {
  const warnings: string[] = [];
  const warn = (message: string) => void warnings.push(message);
  new DynamicGradScaler({ dtype: "bfloat16", growthFactor: 1, backoffFactor: 1, warn });
  assertEquals(warnings, []);
  new DynamicGradScaler({ dtype: "bfloat16", warn });
  assertEquals(warnings.length, 2);
});

Deno.test("DynamicGradScaler refuses a damaged state", () => {
  const state = { _scale: NaN, _growth_step: 0, _hysteresis_step: 0 };
  assertThrows(() => new DynamicGradScaler().loadStateDict(state), TypeError, "_scale");
});
