import { assertEquals, assertThrows } from "@std/assert";
import { evaluateArithmetic } from "./arithmetic.ts";

Deno.test("evaluateArithmetic() reads what InternEvo's records contain", () => {
  assertEquals(evaluateArithmetic("8/3"), 8 / 3);
  assertEquals(evaluateArithmetic("2**16"), 65536);
  assertEquals(evaluateArithmetic("512*1024*1024"), 536870912);
  assertEquals(evaluateArithmetic(" 1e-4 "), 1e-4);
  assertEquals(evaluateArithmetic("1_000"), 1000);
});

Deno.test("evaluateArithmetic() has Python's precedence", () => {
  assertEquals(evaluateArithmetic("1+2*3-4/2"), 5);
  assertEquals(evaluateArithmetic("-2**2"), -4);
  assertEquals(evaluateArithmetic("2**-1"), 0.5);
  assertEquals(evaluateArithmetic("2**3**2"), 512);
  assertEquals(evaluateArithmetic("(1+2)*3"), 9);
  assertEquals(evaluateArithmetic("7//2*2"), 6);
  assertEquals(evaluateArithmetic("-7//2"), -4);
  assertEquals(evaluateArithmetic("-7%3"), 2);
  assertEquals(evaluateArithmetic("10-2-3"), 5);
});

Deno.test("evaluateArithmetic() refuses everything else", () => {
  for (
    const text of [
      "",
      "a",
      "1+",
      "(1",
      "1)",
      "1 2",
      "2***3",
      "Deno.exit()",
      "1;2",
      "0x10",
      "--",
      "1__a",
      "(".repeat(300),
    ]
  ) {
    assertThrows(() => evaluateArithmetic(text), SyntaxError);
  }
  assertThrows(() => evaluateArithmetic("1/0"), RangeError, "Infinity");
  assertThrows(() => evaluateArithmetic("0/0"), RangeError, "NaN");
});
