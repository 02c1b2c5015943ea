import { chaos } from "./chaos.ts";

Deno.test("5 random accidents to a training of 3 ranks leave no trace in its curve and weights", () =>
  chaos({ trials: 5, nproc: 3, seed: 20240131 }));
