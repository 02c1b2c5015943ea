import { assert, assertEquals } from "@std/assert";
import { accumulate } from "./elements.ts";
import { addVectors, adopt, memoryOf, vectorMemory, vectorSumModule } from "./vector_sum.ts";

/** Numbers of all magnitudes, with some that are none. */
const drawn = (seed: number, length: number) =>
  Float32Array.from({ length }, (_, i) => {
    if (i % 97 === 50) return [Infinity, -Infinity, -0, 1e-42, 3.4e38][(i + seed) % 5]!;
    return Math.sin((i + 1) * (seed + 1.5)) * 10 ** ((i * 7 + seed) % 30 - 15);
  });

Deno.test("the module is one, and small", () => {
  assert(WebAssembly.validate(vectorSumModule()));
  assert(vectorSumModule().length < 256);
});

Deno.test("sums by vectors have the bits of sums one by one, at every length and place", () => {
  const room = vectorMemory(4 * 4096), piece = vectorMemory(4 * 2048), all = new Float32Array(room, 0, 4096);
  assert(memoryOf(room), "there is such memory here");
  for (const [at, from, length] of [[0, 0, 2048], [1, 3, 1000], [37, 0, 15], [5, 2, 16], [100, 7, 17], [8, 1, 0]]) {
    const sum = new Float32Array(room, 4 * at!, length), term = new Float32Array(piece, 4 * from!, length);
    all.set(drawn(1, 4096));
    term.set(drawn(2, length!));
    const expected = all.slice();
    for (let i = 0; i < length!; i++) expected[at! + i] = expected[at! + i]! + term[i]!;
    accumulate(sum, term, "sum");
    assertEquals(new Uint32Array(room).slice(0, 4096), new Uint32Array(expected.buffer), `${length} from ${at}`);
  }
});

Deno.test("addVectors() adds nothing in other memory, and a memory that is handed over is known there", () => {
  const room = vectorMemory(64), plain = new SharedArrayBuffer(64);
  assertEquals(addVectors(new Float32Array(room), new Float32Array(plain)), 0);
  assertEquals(addVectors(new Float32Array(plain), new Float32Array(room)), 0);
  const memory = memoryOf(room)!, there = adopt(memory);
  assertEquals(addVectors(new Float32Array(there, 0, 16).fill(1), new Float32Array(room, 0, 16)), 16);
  assertEquals(new Float32Array(room)[15], 2, "one memory");
});
