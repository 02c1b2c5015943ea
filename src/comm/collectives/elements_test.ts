import { assert, assertEquals } from "@std/assert";
import { decode, encode } from "../../../kernels/host.ts";
import { accumulate, narrow, narrowInPlace, typeOf, widen, widenInPlace } from "./elements.ts";

const wide = (bits: number) => {
  const into = new Float32Array(1);
  widen(Uint16Array.of(bits), into);
  return into[0]!;
};
const toBf16 = (value: number) => {
  const into = new Uint16Array(1);
  narrow(Float32Array.of(value), into);
  return into[0]!;
};

Deno.test("narrow() rounds to the nearest bfloat16, ties to even", () => {
  for (let trial = 1; trial < 3000; trial++) {
    const value = Math.fround(Math.sin(trial) * 10 ** (trial % 60 - 30)), bits = toBf16(value);
    const error = Math.abs(wide(bits) - value);
    for (const neighbour of [bits - 1, bits + 1]) assert(error <= Math.abs(wide(neighbour) - value), `${value}`);
  }
  // 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷, 1 + 3 · 2⁻⁸ between 1 + 2⁻⁷ and 1 + 2⁻⁶.
  assertEquals([1 + 2 ** -8, 1 + 3 * 2 ** -8].map((value) => wide(toBf16(value))), [1, 1 + 2 ** -6]);
});

Deno.test("narrow() and widen() keep every bfloat16, infinities and NaN", () => {
  for (let bits = 0; bits < 1 << 16; bits++) {
    const value = wide(bits);
    if (Number.isNaN(value)) assert(Number.isNaN(wide(toBf16(value))));
    else assertEquals(toBf16(value), bits);
  }
  assertEquals(wide(toBf16(3.4e38)), Infinity);
  // A NaN whose payload is in the lower half only.
  const nan = new Float32Array(Uint32Array.of(0x7f800001).buffer), into = new Uint16Array(1);
  narrow(nan, into);
  assert(Number.isNaN(wide(into[0]!)));
});

Deno.test("accumulate() adds and takes the larger, of every type, and lets a NaN through", () => {
  const bf16 = new Uint16Array(3);
  narrow(Float32Array.of(1, -2, NaN), bf16);
  for (const term of [Float32Array.of(1, -2, NaN), Float16Array.of(1, -2, NaN), bf16]) {
    const sum = Float32Array.of(0.5, 0.5, 0.5), most = sum.slice();
    accumulate(sum, term, "sum");
    accumulate(most, term, "max");
    assertEquals([[...sum], [...most]], [[1.5, -1.5, NaN], [1, 0.5, NaN]], typeOf(term));
  }
});

for (const type of ["f16", "bf16"] as const) {
  Deno.test(`numbers are rounded to ${type} where they lie, and part of them comes back`, () => {
    const length = 40_001, drawn = Float32Array.from({ length }, (_, i) => Math.sin(i) * 10 ** (i % 9 - 4));
    const room = drawn.slice(), half = narrowInPlace(room, type);
    assertEquals(new Uint16Array(half.buffer, 0, length), encode(type, drawn));
    const [begin, end] = [7_003, 39_001], expected = decode(type, encode(type, drawn));
    widenInPlace(room, type, begin, end);
    assertEquals(room.subarray(begin, end), expected.subarray(begin, end));
  });
}
