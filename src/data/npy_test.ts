import { assertEquals } from "@std/assert";
import { npyHeader, parseNpyHeader } from "./npy.ts";

Deno.test("npyHeader() writes NumPy's bytes", () => {
  // The beginning of numpy.save(…, numpy.array([[0, 3], [22, 2]], dtype=numpy.int32)).
  const header = "\x93NUMPY\x01\x00v\x00{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }".padEnd(127) + "\n";
  assertEquals(npyHeader("<i4", 2, 2), Uint8Array.from(header, (character) => character.charCodeAt(0)));
});

Deno.test("parseNpyHeader() reads what npyHeader() writes", () => {
  for (const type of ["<i4", "<i8"] as const) {
    for (const rows of [0, 1, 2 ** 31]) {
      const header = npyHeader(type, rows, 2), bytes = header.length + rows * 2 * (type === "<i4" ? 4 : 8);
      assertEquals(parseNpyHeader(header, "a.npy", bytes), { type, rows, columns: 2, dataStart: header.length });
    }
  }
});
