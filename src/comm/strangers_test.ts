import { assertEquals } from "@std/assert";
import { mostStrangers, Strangers } from "./strangers.ts";

/** Connections that are known by their number, and note which of them were closed. */
function connections() {
  const closed: number[] = [];
  return { closed, connect: (number: number) => ({ close: () => void closed.push(number) }) };
}

Deno.test("Strangers lets in as many as it listens to; one that leaves makes room for the next", async () => {
  const strangers = new Strangers(), { closed, connect } = connections();
  const first = Array.from({ length: mostStrangers }, (_, number) => connect(number));
  for (const each of first) assertEquals(await strangers.admit(each), true);
  const next = strangers.admit(connect(mostStrangers));
  assertEquals(strangers.delete(first[7]!), true);
  assertEquals(await next, true);
  assertEquals(closed, []);
  strangers.close();
  assertEquals(closed.length, mostStrangers);
});

Deno.test("Strangers shows out the oldest first, and keeps no more than it listens to", async () => {
  const strangers = new Strangers(), { closed, connect } = connections(), all = 3 * mostStrangers;
  for (let number = 0; number < all; number++) {
    assertEquals(await strangers.admit(connect(number)), true);
    assertEquals(closed.length, Math.max(0, number + 1 - mostStrangers));
  }
  assertEquals(closed, Array.from({ length: all - mostStrangers }, (_, number) => number));
  strangers.close();
  assertEquals(await strangers.admit(connect(all)), false);
  assertEquals(closed.at(-1), all);
});
