/** One suite, every backend. The null backend computes nothing, so it skips what looks at results. */
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { add, addInPlace } from "../../kernels/elementwise/mod.ts";
import { encode } from "../../kernels/host.ts";
import type { Backend, DeviceBuffer, Range } from "./backend.ts";
import { openNullBackend } from "./null/backend.ts";
import { backendNames, openBackend } from "./open.ts";

const whole = (buffer: DeviceBuffer): Range => ({ buffer, offset: 0, bytes: buffer.bytes });

function filled(backend: Backend, label: string, values: readonly number[]): DeviceBuffer {
  const buffer = backend.allocate(4 * values.length, label);
  backend.upload(whole(buffer), new Float32Array(values));
  return buffer;
}

const floats = (bytes: Uint8Array<ArrayBuffer>) => [...new Float32Array(bytes.buffer)];

for (const name of backendNames) {
  Deno.test(`${name}: submit() runs dispatches, copies and clears in order, again and again`, async () => {
    using backend = await openBackend(name);
    const a = filled(backend, "a", [1, 2, 3]);
    const b = filled(backend, "b", [10, 20, 30]);
    const y = backend.allocate(12, "y");
    const list = await backend.prepare([
      { kind: "dispatch", kernel: add({ length: 3 }), ranges: [whole(a), whole(b), whole(y)] },
      { kind: "copy", source: whole(y), target: whole(a) },
      { kind: "clear", target: { buffer: y, offset: 4, bytes: 8 } },
      { kind: "copy", source: { buffer: y, offset: 0, bytes: 4 }, target: { buffer: b, offset: 8, bytes: 4 } },
    ]);
    backend.submit(list);
    backend.submit(list);
    const ticket = backend.read([whole(a), whole(b), whole(y)]);
    await ticket.ready();
    const [gotA, gotB, gotY] = ticket.take();
    await backend.finish();
    if (name === "null") return;
    assertEquals(floats(gotA), [21, 42, 44]);
    assertEquals(floats(gotB), [10, 20, 21]);
    assertEquals(floats(gotY), [21, 0, 0]);
  });

  Deno.test(`${name}: allocate() gives zeros, counts bytes and refuses what cannot be`, async () => {
    using backend = await openBackend(name);
    const buffer = backend.allocate(512, "zeros");
    const ticket = backend.read([whole(buffer)]);
    await ticket.ready();
    assertEquals(ticket.take()[0].every((byte) => byte === 0), true);
    assertEquals(backend.allocatedBytes, 512);
    assertThrows(() => backend.allocate(6, "odd"), RangeError, "multiple of 4, got 6");
    assertThrows(() => backend.allocate(0, "none"), RangeError, "got 0");
    const tooMuch = 4 * Math.floor(backend.traits.limits.maxBufferSize / 4) + 4;
    assertThrows(() => backend.allocate(tooMuch, "huge"), RangeError, `"huge": ${tooMuch} bytes asked`);
    backend.release(buffer);
    assertEquals(backend.allocatedBytes, 0);
    assertThrows(() => backend.release(buffer), ReferenceError, "zeros");
    await backend.finish();
  });

  Deno.test(`${name}: a wrong plan is refused in the same words`, async () => {
    using backend = await openBackend(name);
    const a = backend.allocate(1024, "a"), b = backend.allocate(1024, "b"), y = backend.allocate(1024, "y");
    const kernel = add({ length: 3 });
    const dispatch = (...ranges: Range[]) => backend.prepare([{ kind: "dispatch", kernel, ranges }]);
    await assertRejects(() => dispatch(whole(a), whole(b)), RangeError, "3 operands (a, b, y, scratch included)");
    await assertRejects(
      () => dispatch(whole(a), { buffer: b, offset: 8, bytes: 16 }, whole(y)),
      RangeError,
      "operand b: offset in buffer",
    );
    await assertRejects(
      () => dispatch(whole(a), whole(b), { buffer: y, offset: 768, bytes: 512 }),
      RangeError,
      "768..1280 leaves buffer",
    );
    await assertRejects(
      () => dispatch(whole(a), whole(b), { buffer: y, offset: 0, bytes: 8 }),
      RangeError,
      "3 f32 need 12 bytes",
    );
    await assertRejects(
      () => dispatch(whole(a), whole(b), { buffer: a, offset: 512, bytes: 16 }),
      RangeError,
      "also holds operand a (read)",
    );
    await dispatch(whole(a), { buffer: a, offset: 512, bytes: 16 }, whole(y)); // two reads may share
    const copy = (source: Range, target: Range) => backend.prepare([{ kind: "copy", source, target }]);
    await assertRejects(() => copy(whole(a), { buffer: y, offset: 0, bytes: 8 }), RangeError, "target 8");
    await assertRejects(
      () => copy({ buffer: a, offset: 0, bytes: 8 }, { buffer: a, offset: 512, bytes: 8 }),
      RangeError,
      "different buffers",
    );
    assertThrows(() => backend.upload({ buffer: a, offset: 0, bytes: 4 }, new Float32Array(2)), RangeError, "8 bytes");
    backend.release(b);
    await assertRejects(() => dispatch(whole(a), whole(b), whole(y)), ReferenceError, '"b" was released');
    assertThrows(() => backend.read([whole(b)]), ReferenceError, '"b" was released');
    await backend.finish();
  });

  Deno.test(`${name}: read() is of the moment of the call, and take() works once`, async () => {
    using backend = await openBackend(name);
    const x = filled(backend, "x", [1, 2]);
    const ticket = backend.read([{ buffer: x, offset: 4, bytes: 4 }]);
    backend.upload(whole(x), new Float32Array([7, 8]));
    ticket.wait();
    await ticket.ready();
    const [bytes] = ticket.take();
    if (name !== "null") assertEquals(floats(bytes), [2]);
    assertThrows(() => ticket.take(), Error, "twice");
    await backend.finish();
  });
}

for (const name of backendNames.filter((name) => name !== "null")) {
  Deno.test(`${name}: readInto() fills places in shared memory, beyond any piece that a device moves at once`, async () => {
    using backend = await openBackend(name);
    const count = 330_001, values = Float32Array.from({ length: count }, (_, i) => i);
    const buffer = backend.allocate(4 * count, "many");
    backend.upload(whole(buffer), values);
    const memory = new Float32Array(new SharedArrayBuffer(4 * count + 8));
    const place = (begin: number, length: number) => new Uint8Array(memory.buffer, 4 * begin, 4 * length);
    const range = (begin: number, length: number): Range => ({ buffer, offset: 4 * begin, bytes: 4 * length });
    for (let round = 0; round < 2; round++) { // the second time through larger memory
      memory.fill(-1);
      const ticket = backend.readInto(
        [range(1, 3), range(5, 100_000), range(100_005, count - 100_005)],
        [place(count - 1, 3), place(1, 100_000), place(100_001, count - 100_005)],
      );
      await ticket.ready();
      ticket.take();
      const expected = Float32Array.from({ length: count + 2 }, (_, i) => i === 0 ? -1 : i + 4);
      expected.set([-1, -1, -1], count - 4);
      expected.set([1, 2, 3], count - 1);
      assertEquals(new Float32Array(memory), expected);
      await backend.finish();
    }
    assertThrows(() => backend.readInto([range(0, 2)], [place(0, 1)]), RangeError, "8 bytes asked into a place of 4");
  });

  for (const type of ["f16", "bf16"] as const) {
    Deno.test(`${name}: computes on ${type}, and leaves the padding of an odd length as it was`, async () => {
      using backend = await openBackend(name);
      if (name === "webgpu" && type === "f16" && !backend.traits.features.shaderF16) {
        return console.log("skipped: the device has no f16");
      }
      const ranges = ["x", "y"].map((label) => whole(backend.allocate(8, label)));
      for (const range of ranges) backend.upload(range, encode(type, [1, -2, 3.1416, 9]));
      const kernel = addInPlace({ length: 3, type });
      backend.submit(await backend.prepare([{ kind: "dispatch", kernel, ranges }]));
      const ticket = backend.read([ranges[0]]);
      await ticket.ready();
      const [bytes] = ticket.take();
      await backend.finish();
      assertEquals(new Uint16Array(bytes.buffer), encode(type, [2, -4, 2 * 3.1416, 9]));
    });
  }
}

Deno.test("null: counts work and the peak, and takes narrower limits", async () => {
  using backend = openNullBackend({ maxBufferSize: 1024 });
  assertThrows(() => backend.allocate(2048, "large"), RangeError, "at most 1024");
  const [a, b, y] = ["a", "b", "y"].map((label) => backend.allocate(1024, label));
  const list = await backend.prepare([
    { kind: "dispatch", kernel: add({ length: 256 }), ranges: [whole(a), whole(b), whole(y)] },
    { kind: "clear", target: whole(y) },
  ]);
  for (let step = 0; step < 3; step++) backend.submit(list);
  backend.release(a);
  const { submits, dispatches, clears, copies, flops, bytes } = backend.counts;
  assertEquals([submits, dispatches, clears, copies, flops, bytes], [3, 3, 3, 0, 3 * 256, 3 * 3 * 1024]);
  assertEquals([backend.peakBytes, backend.allocatedBytes], [3072, 2048]);
});

// The GPU's own error comes later: `webgpu/backend_test.ts`.
for (const name of ["cpu", "null"] as const) {
  Deno.test(`${name}: submit() refuses what was released since it was prepared`, async () => {
    using backend = await openBackend(name);
    const [a, b, y] = ["a", "b", "y"].map((label) => backend.allocate(16, label));
    const list = await backend.prepare([
      { kind: "dispatch", kernel: add({ length: 3 }), ranges: [whole(a), whole(b), whole(y)] },
    ]);
    backend.submit(list);
    backend.release(b);
    assertThrows(() => backend.submit(list), ReferenceError, 'operand b: buffer "b" was released');
  });
}
