import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { z } from "zod";
import {
  actor,
  AskError,
  type Channel,
  channelPair,
  createRuntime,
  type DeadLetter,
  protocol,
  type Reason,
  remote,
  type RemoteOptions,
  streamChannel,
  testRuntime,
} from "./mod.ts";
import { echo, echoProtocol, noteProtocol } from "./testdata/echo.ts";

const notes = (seen: string[]) =>
  actor({
    protocol: noteProtocol,
    initial: () => seen,
    handle(seen, message) {
      if (message.kind === "note") seen.push(message.text);
      else message.reply(`hello from ${seen.length} notes`);
      return seen;
    },
  });

/** Two "hosts" in one thread; the second exports an echo actor. */
function twoHosts(options: RemoteOptions = {}) {
  const letters: DeadLetter[] = [];
  const onDeadLetter = (letter: DeadLetter) => void letters.push(letter);
  const here = testRuntime({ onDeadLetter });
  const there = testRuntime({ onDeadLetter, scheduler: here.scheduler });
  const [a, b] = channelPair();
  const link = remote(here, a, { name: "there", ...options });
  const original = there.spawn("echo", echo());
  const back = remote(there, b, { exports: { echo: original }, stoppable: true });
  const ref = link.ref(echoProtocol, "echo");
  return { here, there, a, b, link, back, ref, original, letters };
}

async function stopAll(...runtimes: { stop(): Promise<void> }[]) {
  for (const runtime of runtimes) await runtime.stop();
}

Deno.test("remote() asks and answers as if the actor were here", async () => {
  const { here, there, ref, link } = twoHosts();
  await here.settle(link.ready);
  assertEquals(await here.settle(ref.ask({ kind: "echo", value: [1, { a: NaN }] })), [1, { a: NaN }]);
  assertEquals(ref.name, "there/echo");
  await stopAll(here, there);
});

Deno.test("remote() rejects what the protocol does not allow, and what does not exist", async () => {
  const { here, there, ref, link, letters } = twoHosts();
  // deno-lint-ignore no-explicit-any -- what a faulty program sends
  const bad = ref as any;
  const malformed = await assertRejects(() => here.settle(bad.ask({ kind: "echo", valu: 1 })), AskError, "valu");
  assertEquals(malformed.failure, "invalid");
  bad.send({ kind: "exit" });
  await here.settle();
  assertEquals(letters.map(({ actor, kind }) => `${actor} ${kind}`), ["echo exit"]);
  const nobody = link.ref(echoProtocol, "nobody");
  const absent = await assertRejects(() => here.settle(nobody.ask({ kind: "pid" })), AskError, "no such actor");
  assertEquals(absent.failure, "stopped");
  nobody.send({ kind: "finish" });
  await here.settle();
  assertEquals(letters[1].reason, "no such actor");
  const untravelled = ref.ask({ kind: "echo", value: () => {} });
  await assertRejects(() => here.settle(untravelled), AskError, "could not be cloned");
  await stopAll(here, there);
});

Deno.test("remote() carries references: answered over there, called back over here", async () => {
  const { here, there, ref } = twoHosts();
  const seen: string[] = [];
  const to = here.spawn("notes", notes(seen));
  ref.send({ kind: "tell", to, text: "first" });
  ref.send({ kind: "tell", to, text: "second" });
  assertEquals(await here.settle(ref.ask({ kind: "greetVia", to })), "hello from 2 notes");
  assertEquals(seen, ["first", "second"]);
  // A reference that comes home is the actor itself, without a detour.
  const home = await here.settle(ref.ask({ kind: "echo", value: { to } })) as { to: typeof to };
  assertEquals(home.to.name, "notes");
  await here.stopActor(to);
  assertEquals(await here.terminated(home.to), { kind: "stopped" });
  await stopAll(here, there);
});

Deno.test("remote() watch tells of stop, crash, absence and the end of the connection", async () => {
  for (
    const [what, kind] of [["finish", "stopped"], ["crash", "crashed"], ["close", "lost"], [
      "nobody",
      "absent",
    ]] as const
  ) {
    const { here, there, ref, link, back } = twoHosts();
    const reasons: Reason[] = [];
    const watched = what === "nobody" ? link.ref(echoProtocol, "nobody") : ref;
    here.spawn(
      "watcher",
      actor({
        protocol: protocol({}),
        internal: { ended: { reason: z.custom<Reason>() } },
        initial: (context) => void context.watch(watched, (reason) => ({ kind: "ended", reason })),
        handle: (_, message) => void reasons.push(message.reason),
      }),
    );
    await here.settle();
    if (what === "close") back.close();
    else if (what !== "nobody") ref.send({ kind: what });
    await here.settle();
    assertEquals(reasons.map((reason) => reason.kind), [kind]);
    await stopAll(here, there);
  }
});

Deno.test("remote() asks reject at once when the connection ends, later ones too, and commands are dead letters", async () => {
  const { here, there, ref, back, letters, link } = twoHosts();
  const waiting = ref.ask({ kind: "never" }, { timeoutMs: Infinity });
  await here.settle();
  back.close();
  const error = await assertRejects(() => here.settle(waiting), AskError, "connection lost: closed by the other side");
  assertEquals(error.failure, "lost");
  await assertRejects(() => ref.ask({ kind: "pid" }), AskError, "connection lost");
  ref.send({ kind: "finish" });
  assertEquals(letters.at(-1)?.reason, "connection lost: closed by the other side");
  assertEquals((await link.closed).kind, "lost");
  await stopAll(here, there);
});

Deno.test("remote() ask times out by the asker's clock", async () => {
  const { here, there, ref } = twoHosts();
  const waiting = ref.ask({ kind: "never" }, { timeoutMs: 100 });
  await here.advance(100);
  await assertRejects(() => waiting, AskError, `ask "never" to "there/echo" got no answer in 100 ms`);
  await stopAll(here, there);
});

Deno.test("remote() checks the reply against the asker's protocol", async () => {
  const { here, there, link } = twoHosts();
  const newer = protocol({ requests: { echo: { ask: { value: z.unknown() }, reply: z.object({ a: z.number() }) } } });
  const ref = link.ref(newer, "echo");
  assertEquals(await here.settle(ref.ask({ kind: "echo", value: { a: 1 } })), { a: 1 });
  await assertRejects(() => here.settle(ref.ask({ kind: "echo", value: 7 })), AskError, "malformed reply");
  await stopAll(here, there);
});

Deno.test("remote() lets the other side stop what it may, and nothing else", async () => {
  const { here, there, ref, link, back, original } = twoHosts();
  back.stop("echo"); // this side is not stoppable
  link.stop("nobody");
  await here.settle();
  assertEquals(await here.settle(ref.ask({ kind: "echo", value: 1 })), 1);
  link.stop("echo");
  await here.settle();
  assertEquals(await there.terminated(original), { kind: "stopped" });
  await stopAll(here, there);
});

Deno.test("remote() heartbeat closes a silent connection, and only that", async () => {
  const heartbeat = { everyMs: 100, timeoutMs: 350 };
  const alive = twoHosts({ heartbeat });
  await alive.here.advance(2000);
  assertEquals(await alive.here.settle(alive.ref.ask({ kind: "echo", value: 1 })), 1);
  await stopAll(alive.here, alive.there);

  const here = testRuntime();
  const [silent] = channelPair();
  const link = remote(here, silent, { heartbeat });
  const waiting = link.ref(echoProtocol, "echo").ask({ kind: "pid" }, { timeoutMs: Infinity });
  await here.advance(399);
  await assertRejects(() => here.settle(waiting), Error, "still pending");
  await here.advance(1);
  await assertRejects(() => waiting, AskError, "no sign of life for 400 ms");
  await assertRejects(() => link.ready, Error, "no sign of life");
  assertThrows(() => remote(here, channelPair()[0], { heartbeat: { everyMs: 5, timeoutMs: 5 } }), RangeError);
  await here.stop();
});

const nonsense: unknown[] = [
  null,
  { type: "fly" },
  { type: "hello", version: 2 },
  { type: "send", to: {}, message: 1 },
  { type: "send", to: "echo", message: { kind: "tell", text: "", to: { $ref: { to: "__proto__" } } } },
  { type: "down", id: 0, reason: { kind: "bored" } },
  { type: "ask", to: "echo" },
];
for (const message of nonsense) {
  Deno.test(`remote() closes on ${JSON.stringify(message)}, with the reason`, async () => {
    const there = testRuntime();
    const original = there.spawn("echo", echo());
    const [a, b] = channelPair();
    const link = remote(there, b, { exports: { echo: original } });
    a.send(message);
    await there.settle();
    const reason = await link.closed;
    assert(reason.kind === "lost");
    assertStringIncludes(reason.detail, "bad message: ");
    assertEquals(await there.settle(original.ask({ kind: "echo", value: 1 })), 1);
    await there.stop();
    await a.closed;
  });
}

Deno.test("remote() ignores answers to questions never asked", async () => {
  const { here, there, a, ref } = twoHosts();
  for (const type of ["reply", "down", "unwatch"]) {
    a.send({ type, id: 99, value: 1, reason: { kind: "stopped" } });
  }
  a.send({ type: "failed", id: 99, failure: "lost", text: "" });
  assertEquals(await here.settle(ref.ask({ kind: "echo", value: 2 })), 2);
  await stopAll(here, there);
});

Deno.test("remote() works over streams of bytes, by the real clock", async () => {
  const one = new TransformStream<Uint8Array, Uint8Array>();
  const two = new TransformStream<Uint8Array, Uint8Array>();
  const channels: Channel[] = [streamChannel(one.readable, two.writable), streamChannel(two.readable, one.writable)];
  const [here, there] = [createRuntime(), createRuntime()];
  const link = remote(here, channels[0]);
  remote(there, channels[1], { exports: { echo: there.spawn("echo", echo()) } });
  const seen: string[] = [];
  const to = here.spawn("notes", notes(seen));
  const ref = link.ref(echoProtocol, "echo");
  for (let n = 0; n < 50; n++) ref.send({ kind: "tell", to, text: `${n}` });
  assertEquals(await ref.ask({ kind: "greetVia", to }), "hello from 50 notes");
  assertEquals(seen, Array.from({ length: 50 }, (_, n) => `${n}`));
  const value = { bytes: new Uint8Array([1, 2]), loss: NaN };
  assertEquals(await ref.ask({ kind: "echo", value }), value);
  await stopAll(here, there);
});

Deno.test("remote() works over a TCP connection, and notices its end", async () => {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const [client, server] = await Promise.all([Deno.connect({ port: listener.addr.port }), listener.accept()]);
  const [here, there] = [createRuntime(), createRuntime({ log: () => {} })];
  const ref = remote(here, streamChannel(client.readable, client.writable)).ref(echoProtocol, "echo");
  const link = remote(there, streamChannel(server.readable, server.writable), {
    exports: { echo: there.spawn("echo", echo()) },
  });
  const value = "x".repeat(500_000);
  assertEquals(await ref.ask({ kind: "echo", value }), value);
  const waiting = ref.ask({ kind: "never" });
  link.close();
  await assertRejects(() => waiting, AskError, "connection lost: closed by the other side");
  await stopAll(here, there);
});
