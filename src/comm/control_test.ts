import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { joinControl, listenControl } from "./control.ts";
import { offerHandshake } from "./handshake.ts";
import { mostStrangers } from "./strangers.ts";

const hostname = "127.0.0.1", token = "secret";
/** Ends a test that hangs, and no other. */
const patienceMs = 120_000;

Deno.test("listenControl() hears ranks though 1,000 strangers idle, scan and send rubbish", async () => {
  const heard: unknown[] = [];
  const { promise: told, resolve } = Promise.withResolvers<void>();
  const refused: string[] = [];
  await using control = listenControl({
    hostname,
    port: 0,
    token,
    onValue(value) {
      heard.push(value);
      resolve();
    },
    onRefused: (reason) => refused.push(reason),
  });
  const { port } = control, idle: Deno.TcpConn[] = [];
  try {
    for (let i = 0; i < 1000; i++) {
      const connection = await Deno.connect({ hostname, port });
      idle.push(connection);
      if (i % 3 === 1) await connection.write(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n")).catch(() => {});
      if (i % 3 === 2) await connection.write(crypto.getRandomValues(new Uint8Array(200))).catch(() => {});
    }
    using rank = await joinControl({ hostname, port, token, timeoutMs: patienceMs });
    await rank.send({ rank: 0 });
    await told;
    assertEquals(heard, [{ rank: 0 }]);
    // It came last of all, so whoever is not refused by now is one of the few who are listened to.
    const kept = idle.length - refused.length;
    assert(kept <= mostStrangers, `${kept} strangers are kept`);
    await assertRejects(() => joinControl({ hostname, port, token: "another", timeoutMs: patienceMs }));
  } finally {
    for (const connection of idle) connection.close();
  }
});

Deno.test("listenControl() closes a connection whose line is too long, or no JSON", async () => {
  for (const text of ["x".repeat(70_000), "{ no json }\n"]) {
    const { promise, resolve } = Promise.withResolvers<string>();
    await using control = listenControl({ hostname, port: 0, token, onValue: () => {}, onRefused: resolve });
    const connection = await Deno.connect({ hostname, port: control.port });
    await offerHandshake(connection, { token });
    const writing = connection.write(new TextEncoder().encode(text)).catch(() => 0);
    assert((await promise).length > 0);
    await writing;
    assertEquals(await connection.read(new Uint8Array(1)).catch(() => null), null);
    connection.close();
  }
});

Deno.test("listenControl() closes a connection that onValue wants no more of, and the other end learns it", async () => {
  const heard: unknown[] = [];
  await using control = listenControl({ hostname, port: 0, token, onValue: (value) => heard.push(value) < 2 });
  using rank = await joinControl({ hostname, port: control.port, token });
  for (let i = 0; i < 2; i++) await rank.send(i);
  await rank.closed;
  assertEquals(heard, [0, 1]);
});

Deno.test("joinControl() counts the root's answers, which say for how long there may be none", async () => {
  let said = Promise.withResolvers<unknown>();
  await using control = listenControl({ hostname, port: 0, token, silentMs: 2500, onValue: (v) => said.resolve(v) });
  using rank = await joinControl({ hostname, port: control.port, token });
  assertEquals([rank.answers, rank.silentMs], [0, 10_000]);
  for (let values = 0; rank.answers < 2; values++) { // an answer is never far behind
    await rank.send(values);
    await said.promise;
    said = Promise.withResolvers();
  }
  assertEquals(rank.silentMs, 2500);
});

Deno.test("listenControl() names the address where it cannot listen, and what would work", () => {
  const open = () => listenControl({ hostname, port: 70_000, token, onValue() {} }); // no port, whoever asks
  assertThrows(open, Error, "Cannot listen on 127.0.0.1: ");
});
