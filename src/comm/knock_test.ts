import { assert, assertEquals, assertRejects } from "@std/assert";
import { hostname } from "./_testing.ts";
import { HandshakeError, TurnedAwayError } from "./handshake.ts";
import { knock } from "./knock.ts";
import { mostStrangers } from "./strangers.ts";
import { dial, openGate } from "./transport/gate.ts";

Deno.test("knock() tries again for who was turned away, and takes anything else for an answer", async () => {
  let attempts = 0;
  const turnedAway = (times: number) => (leftMs: number) => {
    assert(leftMs > 0);
    return ++attempts > times ? Promise.resolve("in") : Promise.reject(new TurnedAwayError("full"));
  };
  assertEquals(await knock(60_000, turnedAway(2)), "in");
  assertEquals(attempts, 3);
  attempts = 0;
  await assertRejects(() => knock(1, turnedAway(2)), TurnedAwayError, "full");
  assertEquals(attempts, 1, "there was no time for another");
  await assertRejects(() => knock(60_000, () => Promise.reject(new HandshakeError("no"))), HandshakeError);
});

Deno.test("dial() gets all in that come in one instant to a hall full of strangers, and tells a wrong token from a crowd", async () => {
  const token = "secret", count = 300, refused: string[] = [], streams: { close(): void }[] = [];
  const gate = openGate({
    hostname,
    token,
    encrypt: false,
    onStream: (stream) => void streams.push(stream),
    onRefused: (reason) => void refused.push(reason),
  });
  const { port } = gate.address;
  const idle = await Promise.all(Array.from({ length: 2 * mostStrangers }, () => Deno.connect({ hostname, port })));
  const knocking = { hostname, port, encrypt: false, timeoutMs: 120_000 };
  try {
    const wrong = Array.from(
      { length: 3 },
      () => assertRejects(() => dial({ ...knocking, token: "guess" }), HandshakeError, "is the token the same?"),
    );
    streams.push(...await Promise.all(Array.from({ length: count }, () => dial({ ...knocking, token }))));
    await Promise.all(wrong);
  } finally {
    await gate.close();
    for (const each of [...idle, ...streams]) each.close();
  }
  assertEquals(streams.length, 2 * count, "who was told to be in is in");
  assertEquals(refused.filter((reason) => reason.includes("does not know the run's token")).length, 3);
});
