import { assertEquals } from "@std/assert";
import { decode, encode, type HalfType } from "./host.ts";

const patterns = Uint16Array.from({ length: 65_536 }, (_, i) => i);

for (const type of ["f16", "bf16"] as const) {
  Deno.test(`encode() gives back every ${type} that decode() gives`, () => {
    const numbers = decode(type, patterns);
    assertEquals(decode(type, encode(type, numbers)), numbers);
    const back = encode(type, numbers);
    patterns.forEach((pattern, i) => Number.isNaN(numbers[i]) || assertEquals(back[i], pattern));
  });
}

Deno.test("encode() rounds to nearest, ties to even, and to infinity past the largest number", () => {
  // Bits by hand, from IEEE 754 and the definition of bfloat16.
  const cases: readonly (readonly [HalfType, number, number])[] = [
    ["bf16", 1, 0x3f80],
    ["bf16", -2, 0xc000],
    ["bf16", 1 + 2 ** -8, 0x3f80],
    ["bf16", 1 + 2 ** -8 + 2 ** -20, 0x3f81],
    ["bf16", 1 + 3 * 2 ** -8, 0x3f82],
    ["bf16", 3.3961775e38, 0x7f80],
    ["bf16", 3.39e38, 0x7f7f],
    ["bf16", 1e-45, 0],
    ["bf16", 2 ** -133, 1],
    ["bf16", -Infinity, 0xff80],
    ["f16", 1, 0x3c00],
    ["f16", 1 + 2 ** -11, 0x3c00],
    ["f16", 1 + 3 * 2 ** -11, 0x3c02],
    ["f16", 65_519, 0x7bff],
    ["f16", 65_520, 0x7c00],
    ["f16", 2 ** -24, 1],
    ["f16", 2 ** -25, 0],
  ];
  for (const [type, value, bits] of cases) assertEquals(encode(type, [value])[0], bits, `${type} ${value}`);
});

Deno.test("encode() keeps NaN, even one whose digits are all in the lower half", () => {
  for (const word of [0x7f800001, 0xffffffff, 0x7fc00000]) {
    const value = new Float32Array(Uint32Array.of(word).buffer);
    for (const type of ["f16", "bf16"] as const) assertEquals(decode(type, encode(type, value))[0], NaN);
  }
});

Deno.test("decode() and encode() take a part of a larger array", () => {
  const stored = encode("bf16", [1, 2, 3, 4]);
  assertEquals([...decode("bf16", stored.subarray(1, 3))], [2, 3]);
  assertEquals([...decode("f16", encode("f16", [5, 6, 7]).subarray(2))], [7]);
  assertEquals([...encode("bf16", new Float32Array([9, 1, 9]).subarray(1, 2))], [0x3f80]);
});
