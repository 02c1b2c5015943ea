import { add, addInPlace, scale } from "./mod.ts";
import { checkKernel, randomNormal } from "../testing.ts";

for (const length of [1, 4, 255, 1028, 4099]) {
  Deno.test(`add(), addInPlace() and scale() match their references at length ${length}`, async () => {
    const a = randomNormal(length, 1);
    const b = randomNormal(length, 2);
    await checkKernel(add({ length }), { a, b }, { tolerance: 0 });
    await checkKernel(addInPlace({ length }), { x: a, y: b }, { tolerance: 0 });
    await checkKernel(scale({ length, factor: -0.3 }), { x: a }, { tolerance: 0 });
  });
}
