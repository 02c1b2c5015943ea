import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import type { Kernel } from "./kernel.ts";
import { add, scale } from "./elementwise/mod.ts";
import { checkGradient, checkKernel, compare, finiteDifference, randomNormal } from "./testing.ts";

const a = randomNormal(10, 1), b = randomNormal(10, 2);

/** `add` whose WGSL, which reads its operands as buffers, is changed. */
function broken(change: (code: string) => string): Kernel {
  const kernel = add({ length: 10 });
  return {
    ...kernel,
    passes: (traits) =>
      kernel.passes({ ...traits, imageReads: false }).map((pass) => ({ ...pass, code: change(pass.code) })),
  };
}

Deno.test("checkKernel() returns what the device wrote", async () => {
  const { outputs, worst } = await checkKernel(add({ length: 10 }), { a, b });
  assertEquals(outputs.y[3], Math.fround(a[3] + b[3]));
  assertEquals(worst, 0);
});

Deno.test("checkKernel() names the operand that differs, with values and the worst error", async () => {
  await assertRejects(
    () => checkKernel(broken((code) => code.replace("a[i] + b[i]", "a[i] + 1.5 * b[i]")), { a, b }),
    Error,
    "y: 10 of 10 differ",
  );
});

Deno.test("checkKernel() sees an element left unwritten", async () => {
  const partial = broken((code) => code.replace("i >= 10u", "i >= 9u"));
  await assertRejects(() => checkKernel(partial, { a, b }), Error, "y: 1 of 10 differ");
});

Deno.test("checkKernel() reports refused WGSL and leaves a device for the next kernel", async () => {
  await assertRejects(() => checkKernel(broken((code) => code + "!"), { a, b }), SyntaxError, "elementwise.add");
  await checkKernel(add({ length: 10 }), { a, b });
});

Deno.test("checkKernel() refuses missing, misspelt and short inputs", async () => {
  await assertRejects(() => checkKernel(add({ length: 10 }), { a }), RangeError, "10 elements of b, got none");
  await assertRejects(() => checkKernel(add({ length: 10 }), { a, b: [1] }), RangeError, "10 elements of b, got 1");
  await assertRejects(() => checkKernel(add({ length: 10 }), { a, b, c: a }), RangeError, "no operand c");
});

Deno.test("compare() takes equal infinities and NaN as equal, and any other as different", () => {
  assertEquals(compare("x", [Infinity, NaN, 1], [Infinity, NaN, 1], 0).worst, 0);
  assert(compare("x", [Infinity], [1], 1).fault !== undefined);
  assert(compare("x", [1], [NaN], 1).fault !== undefined);
  assert(compare("x", [1e-9, 1], [0, 1], 1e-8).fault === undefined);
});

Deno.test("finiteDifference() is the gradient of a cubic", () => {
  const gradient = finiteDifference((x) => x[0] ** 3 + 2 * x[1], new Float64Array([2, 5]));
  assertEquals([...gradient].map((value) => Math.round(value * 1e6) / 1e6), [12, 2]);
});

Deno.test("checkGradient() takes the right gradient and refuses a wrong one", () => {
  const forward = scale({ length: 5, factor: 3 });
  const named = (factor: number): Kernel => {
    const kernel = scale({ length: 5, factor });
    const [x, y] = kernel.operands;
    return { ...kernel, operands: [{ ...x, name: "dy" }, { ...y, name: "dx" }] };
  };
  const inputs = { x: randomNormal(5, 3) };
  checkGradient(forward, named(3), { inputs });
  assertThrows(() => checkGradient(forward, named(2), { inputs }), Error, "dx: 5 of 5 differ");
});
