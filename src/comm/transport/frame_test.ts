import { assert, assertEquals, assertInstanceOf, assertThrows } from "@std/assert";
import { decodeFrame, encodeFrame, type Frame, headerBytes, maxBodyBytes } from "./frame.ts";

const frame: Frame = {
  kind: "data",
  tag: {
    operator: "reduce-scatter",
    group: 0xdeadbeef,
    sequence: 7,
    step: 65537,
    type: "bf16",
    reduction: "sum",
    count: 2 ** 40,
  },
  bodyBytes: maxBodyBytes,
  messageBytes: 2 ** 35,
};
const encoded = () => {
  const bytes = new Uint8Array(headerBytes);
  encodeFrame(frame, bytes);
  return bytes;
};

Deno.test("decodeFrame() gives back what encodeFrame() took", () => assertEquals(decodeFrame(encoded()), frame));

Deno.test("decodeFrame() refuses a body above the bound, and one larger than its message", () => {
  const bytes = encoded(), view = new DataView(bytes.buffer);
  view.setUint32(20, maxBodyBytes + 1, true);
  assertThrows(() => decodeFrame(bytes), RangeError, `found ${maxBodyBytes + 1}`);
  view.setUint32(20, 8, true);
  view.setFloat64(32, 4, true);
  assertThrows(() => decodeFrame(bytes), RangeError, "8 of 4 bytes");
});

Deno.test("decodeFrame() takes any bytes without another error than RangeError", () => {
  let seed = 1;
  const random = (below: number) => (seed = Math.imul(seed, 1664525) + 1013904223 >>> 0) % below;
  let accepted = 0;
  for (let trial = 0; trial < 20_000; trial++) {
    const bytes = trial % 2 === 0 ? encoded() : Uint8Array.from({ length: random(headerBytes * 2) }, () => random(256));
    for (let flips = random(4); flips > 0 && bytes.length > 0; flips--) bytes[random(bytes.length)] = random(256);
    try {
      const { bodyBytes, messageBytes } = decodeFrame(bytes);
      assert(bodyBytes <= maxBodyBytes && bodyBytes <= messageBytes && Number.isSafeInteger(messageBytes));
      accepted++;
    } catch (error) {
      assertInstanceOf(error, RangeError);
    }
  }
  assert(accepted > 0 && accepted < 20_000);
});
