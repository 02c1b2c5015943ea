import { assert, assertEquals } from "@std/assert";
import { afterPatience } from "./patience.ts";

Deno.test("afterPatience() does not count the time in which this process could do nothing", async () => {
  const order: string[] = [], { promise, resolve } = Promise.withResolvers<void>();
  using _ = afterPatience(200, () => {
    order.push("out of patience");
    resolve();
  });
  const { port1, port2 } = new MessageChannel();
  port2.onmessage = () => order.push("an answer");
  port1.postMessage("it lies there unread");
  const until = performance.now() + 300;
  while (performance.now() < until); // as one that is stopped
  await promise;
  port1.close();
  port2.close();
  assertEquals(order, ["an answer", "out of patience"]);
});

Deno.test("afterPatience() waits anew while this process starves, but not for ever", async () => {
  let called = 0, rounds = 0;
  const { promise, resolve } = Promise.withResolvers<void>();
  // Whatever else there is to do, each turn of the event loop is late by more than a turn of the wait.
  const starve = () => {
    const until = performance.now() + 12;
    while (performance.now() < until);
    rounds++;
    if (!called) setTimeout(starve, 0);
  };
  using _ = afterPatience(40, () => {
    called++;
    resolve();
  });
  starve();
  await promise;
  assert(rounds >= 24, `${rounds} rounds of nothing but waiting`);
});

Deno.test("afterPatience() calls once, and not when it was disposed of", async () => {
  let calls = 0;
  afterPatience(1, () => calls++)[Symbol.dispose]();
  const began = performance.now(), { promise, resolve } = Promise.withResolvers<void>();
  afterPatience(150, resolve);
  await promise;
  assert(performance.now() - began >= 145);
  assertEquals(calls, 0);
});
