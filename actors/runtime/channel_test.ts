import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { type Channel, channelPair, streamChannel, type StreamOptions } from "./mod.ts";
import { decodeJson, encodeJson } from "./json.ts";
import { lost } from "./channel.ts";

/** Two stream channels joined by real byte streams, and the writer of raw bytes to the second's reader. */
function streamPair(options?: StreamOptions): [Channel, Channel] {
  const there = new TransformStream<Uint8Array, Uint8Array>();
  const back = new TransformStream<Uint8Array, Uint8Array>();
  return [
    streamChannel(back.readable, there.writable, options),
    streamChannel(there.readable, back.writable, options),
  ];
}

/** A stream channel whose other side the test plays, byte by byte. */
function rawChannel(options?: StreamOptions) {
  const there = new TransformStream<Uint8Array, Uint8Array>();
  const back = new TransformStream<Uint8Array, Uint8Array>();
  const channel = streamChannel(there.readable, back.writable, options);
  const received: unknown[] = [];
  channel.receive((message) => received.push(message));
  return { channel, received, writer: there.writable.getWriter(), reader: back.readable.getReader() };
}

function frame(text: string): Uint8Array {
  const bytes = new TextEncoder().encode(text);
  const whole = new Uint8Array(4 + bytes.length);
  new DataView(whole.buffer).setUint32(0, bytes.length);
  whole.set(bytes, 4);
  return whole;
}

const values: unknown[] = [
  null,
  undefined,
  [undefined, 1.5, -0, 0, NaN, Infinity, -Infinity, 2n ** 70n],
  { text: "ü\n", nested: { list: [[], {}], flag: true }, missing: undefined },
  new Uint8Array([0, 255, 7]),
  JSON.parse(`{"__proto__": {"polluted": 1}}`),
];

Deno.test("encodeJson() and decodeJson() lose nothing", () => {
  for (const value of values) assertEquals(decodeJson(encodeJson(value)), value);
  assert(Object.is((decodeJson(encodeJson([-0])) as number[])[0], -0));
  const back = decodeJson(encodeJson(JSON.parse(`{"__proto__": {"polluted": 1}}`))) as Record<string, unknown>;
  assertEquals(Object.keys(back), ["__proto__"]);
  assertEquals(back.polluted, undefined);
});

Deno.test("encodeJson() refuses what cannot travel", () => {
  for (const bad of [() => {}, Symbol("s"), new Date(), new Map(), new SharedArrayBuffer(4), { $: 1 }]) {
    assertThrows(() => encodeJson({ bad }), TypeError, "Cannot encode message");
  }
});

for (const [name, make] of Object.entries({ channelPair, streamPair })) {
  Deno.test(`${name}() carries messages in order, both ways, and keeps those that came early`, async () => {
    const [a, b] = make();
    values.forEach((value) => a.send(value));
    const got: unknown[] = [];
    const all = Promise.withResolvers<void>();
    b.receive((message) => b.send(message));
    a.receive((message) => {
      got.push(message);
      if (got.length === values.length) all.resolve();
    });
    await all.promise;
    assertEquals(got, values);
    a.close();
    assertEquals(await b.closed, lost("closed by the other side"));
    assertEquals(await a.closed, lost("closed by this side"));
    assertEquals([a.send(1), b.send(1)], [false, false]);
  });

  Deno.test(`${name}() hands over what was sent before close()`, async () => {
    const [a, b] = make();
    const got: unknown[] = [];
    b.receive((message) => got.push(message));
    for (let n = 0; n < 100; n++) a.send(n);
    a.close();
    await Promise.all([a.closed, b.closed]);
    assertEquals(got, Array.from({ length: 100 }, (_, n) => n));
  });

  Deno.test(`${name}() stays open after a message that cannot travel`, async () => {
    const [a, b] = make();
    assertThrows(() => a.send(() => {}));
    const got = new Promise((resolve) => b.receive(resolve));
    a.send("next");
    assertEquals(await got, "next");
    a.close();
    await Promise.all([a.closed, b.closed]);
  });
}

Deno.test("streamChannel() puts frames together however they are cut", async () => {
  const { channel, received, writer, reader } = rawChannel();
  const bytes = new Uint8Array([...frame("[1]"), ...frame(`{"a":"ü"}`), ...frame(`"${"x".repeat(70_000)}"`)]);
  for (let at = 0; at < 40; at++) await writer.write(bytes.slice(at, at + 1));
  await writer.write(bytes.slice(40));
  await writer.close();
  await channel.closed;
  assertEquals(received.slice(0, 2), [[1], { a: "ü" }]);
  assertEquals((received[2] as string).length, 70_000);
  assertEquals(await channel.closed, lost("closed by the other side"));
  assertEquals((await reader.read()).done, true);
});

const bad: Record<string, [Uint8Array, string]> = {
  "not JSON": [frame("{oops"), "JSON"],
  "not UTF-8": [new Uint8Array([0, 0, 0, 1, 255]), "bad frame"],
  "an unknown tag": [frame(`{"$":"code"}`), "unknown tag"],
  "nesting without end": [frame("[".repeat(200_000) + "]".repeat(200_000)), "stack"],
  "a frame too long": [
    new TextEncoder().encode("Hello, this is no frame"),
    "1214606444 bytes announced, at most 1048576",
  ],
};
for (const [what, [bytes, reason]] of Object.entries(bad)) {
  Deno.test(`streamChannel() closes on ${what}, with the reason`, async () => {
    const { channel, received, writer } = rawChannel();
    writer.write(frame("1")).catch(() => {});
    writer.write(bytes).catch(() => {});
    writer.write(frame("2")).catch(() => {});
    const closed = await channel.closed;
    assert(closed.kind === "lost");
    assertStringIncludes(closed.detail, "bad frame: ");
    assertStringIncludes(closed.detail, reason);
    assertEquals(received, [1]);
    writer.closed.catch(() => {});
  });
}

Deno.test("streamChannel() tells a stream that ended inside a frame", async () => {
  const { channel, writer } = rawChannel();
  await writer.write(frame("[1, 2, 3]").slice(0, 6));
  await writer.close();
  assertEquals(await channel.closed, lost("bad frame: the stream ended inside it"));
});

Deno.test("streamChannel() refuses to send a frame above its bound", async () => {
  const [a, b] = streamPair({ maxFrameBytes: 100 });
  assertThrows(() => a.send("x".repeat(100)), RangeError, "it has 102 bytes, at most 100 are allowed");
  const got = new Promise((resolve) => b.receive(resolve));
  a.send("x".repeat(98));
  assertEquals(await got, "x".repeat(98));
  a.close();
  await Promise.all([a.closed, b.closed]);
});

Deno.test("streamChannel() closes when the other side does not read", async () => {
  const { channel, writer } = rawChannel({ maxQueuedBytes: 1000 });
  for (let n = 0; n < 20; n++) channel.send("x".repeat(100));
  assertEquals(await channel.closed, lost("the other side does not read: 1060 bytes wait for it"));
  writer.closed.catch(() => {});
});
