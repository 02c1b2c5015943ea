import { assertEquals, assertThrows } from "@std/assert";
import { formatNpy, parseNpy } from "./npy.ts";

Deno.test("formatNpy() writes NumPy's bytes", () => {
  const bytes = formatNpy("<i4", 2, [0, 3, 22, 2]);
  // The bytes of numpy.save(…, numpy.array([[0, 3], [22, 2]], dtype=numpy.int32)).
  const header = "\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }".padEnd(127) + "\n";
  assertEquals(
    bytes,
    Uint8Array.from([...header].map((c) => c.charCodeAt(0)).concat([0, 0, 0, 0, 3, 0, 0, 0, 22, 0, 0, 0, 2, 0, 0, 0])),
  );
});

Deno.test("parseNpy() reads what formatNpy() writes", () => {
  for (const [type, largest] of [["<i4", 2 ** 31 - 1], ["<i8", 2 ** 52 + 1]] as const) {
    const { rows, columns, values } = parseNpy(formatNpy(type, 2, [0, -1, largest, 4]), "a.npy");
    assertEquals([rows, columns, ...values], [2, 2, 0, -1, largest, 4]);
  }
  assertEquals(parseNpy(formatNpy("<i8", 2, []), "a.npy").rows, 0);
  assertThrows(() => formatNpy("<i4", 2, [2 ** 31, 1]), RangeError, "<i8 would work");
  assertThrows(() => formatNpy("<i4", 2, [1]), RangeError);
});
