import { assert, assertEquals, assertLess, assertThrows } from "@std/assert";
import { openDevice } from "./provider.ts";
import { openReadback, pack } from "./readback.ts";

async function open() {
  const { device } = await openDevice("deno");
  const readback = await openReadback(device);
  return {
    device,
    readback,
    filled(words: number, first: number): GPUBuffer {
      const buffer = device.createBuffer({ size: 4 * words, usage: GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST });
      device.queue.writeBuffer(buffer, 0, Uint32Array.from({ length: words }, (_, i) => first + i));
      return buffer;
    },
    async [Symbol.asyncDispose]() {
      await readback.settle();
      device.destroy();
    },
  };
}

const words = (bytes: Uint8Array<ArrayBuffer>) => new Uint32Array(bytes.buffer);

Deno.test("take() has the bytes without an await, many times in one turn of the event loop", async () => {
  await using gpu = await open();
  const buffer = gpu.filled(64, 100);
  for (let round = 0; round < 20; round++) {
    gpu.device.queue.writeBuffer(buffer, 0, new Uint32Array([round]));
    const [bytes] = gpu.readback.read([{ buffer, offset: 0, bytes: 8 }]).take();
    assertEquals([...words(bytes)], [round, 101]);
  }
});

Deno.test("read() coalesces ranges and returns them in order", async () => {
  await using gpu = await open();
  const a = gpu.filled(1000, 0), b = gpu.filled(1000, 5000);
  const [second, first] = gpu.readback.read([
    { buffer: b, offset: 4, bytes: 12 },
    { buffer: a, offset: 400, bytes: 4 },
  ]).take();
  assertEquals([...words(second)], [5001, 5002, 5003]);
  assertEquals([...words(first)], [100]);
});

Deno.test("read() sees the state at the call, whatever is submitted before take()", async () => {
  await using gpu = await open();
  const buffer = gpu.filled(4, 7);
  const ticket = gpu.readback.read([{ buffer, offset: 0, bytes: 16 }]);
  gpu.device.queue.writeBuffer(buffer, 0, new Uint32Array(4));
  ticket.wait();
  assertEquals([...words(ticket.take()[0])], [7, 8, 9, 10]);
});

Deno.test("read() serves more tickets than the ring has buffers, taken in any order", async () => {
  await using gpu = await open();
  const buffer = gpu.filled(16, 0);
  const tickets = Array.from({ length: 9 }, (_, i) => gpu.readback.read([{ buffer, offset: 4 * i, bytes: 4 }]));
  for (const i of [8, 0, 4, 1, 7, 2, 6, 3, 5]) assertEquals([...words(tickets[i].take()[0])], [i]);
});

Deno.test("read() of more than any warmed buffer goes in pieces, and the next time in one", async () => {
  await using gpu = await open();
  const count = 700_000; // 2.8 MB against staging buffers of 1 MiB
  const buffer = gpu.filled(count, 3);
  const before = gpu.readback.largestBytes;
  assertLess(before, 4 * count);
  for (let round = 0; round < 2; round++) {
    const ticket = gpu.readback.read([{ buffer, offset: 0, bytes: 4 }, { buffer, offset: 0, bytes: 4 * count }]);
    const [head, all] = ticket.take();
    assertEquals(words(head)[0], 3);
    assert(words(all).every((value, i) => value === 3 + i));
    await gpu.readback.settle();
    assert(gpu.readback.largestBytes >= 4 * count + 4);
  }
});

Deno.test("ready() lets take() go on, and take() may be called once", async () => {
  await using gpu = await open();
  const buffer = gpu.filled(4, 1);
  const ticket = gpu.readback.read([{ buffer, offset: 0, bytes: 4 }]);
  await ticket.ready();
  assertEquals([...words(ticket.take()[0])], [1]);
  assertThrows(() => ticket.take(), Error, "twice");
});

Deno.test("read() of no ranges gives no arrays", async () => {
  await using gpu = await open();
  assertEquals(gpu.readback.read([]).take(), []);
});

Deno.test("take() on a destroyed device throws rather than aborting the process", async () => {
  await using gpu = await open();
  const ticket = gpu.readback.read([{ buffer: gpu.filled(4, 1), offset: 0, bytes: 4 }]);
  gpu.device.destroy();
  assertThrows(() => ticket.take(), Error, "Cannot read back");
});

Deno.test("pack() cuts ranges at the room of a buffer and keeps every byte once", () => {
  const loads = pack([{ bytes: 12 }, { bytes: 4 }, { bytes: 28 }], 16);
  assertEquals(loads.map((load) => load.map(({ range, bytes }) => [range, bytes])), [
    [[0, 12], [1, 4]],
    [[2, 16]],
    [[2, 12]],
  ]);
  assertEquals(loads[2][0], { range: 2, rangeOffset: 16, stagingOffset: 0, bytes: 12 });
});
