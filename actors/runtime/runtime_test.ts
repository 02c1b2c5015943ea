import { assert, assertEquals, assertInstanceOf, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { z } from "zod";
import {
  actor,
  type ActorSpec,
  AskError,
  createRuntime,
  type DeadLetter,
  protocol,
  type Reason,
  type Ref,
  refTo,
  stop,
  testClock,
  testRuntime,
} from "./mod.ts";

const counterProtocol = protocol({
  commands: { add: { amount: z.number() }, fail: {}, finish: {} },
  requests: { read: { ask: {}, reply: z.number() }, never: { ask: {}, reply: z.number() } },
});
const counter = (from = 0) =>
  actor({
    protocol: counterProtocol,
    initial: () => from,
    handle(count, message) {
      switch (message.kind) {
        case "add":
          return count + message.amount;
        case "read":
          message.reply(count);
          return count;
        case "never":
          return count;
        case "fail":
          throw new RangeError("told to fail");
        case "finish":
          return stop;
      }
    },
  });

/** A runtime, and everything that nobody received. */
function watchedRuntime() {
  const letters: DeadLetter[] = [];
  const log: string[] = [];
  const runtime = testRuntime({
    onDeadLetter: (letter) => letters.push(letter),
    log: (actor, text) => log.push(`${actor}: ${text}`),
  });
  return { runtime, letters, log };
}

// deno-lint-ignore no-explicit-any -- what a faulty or older program may send
const untyped = (message: unknown) => message as any;

Deno.test("protocol() refuses a name used twice and reserved fields", () => {
  assertThrows(
    () => protocol({ commands: { a: {} }, requests: { a: { ask: {}, reply: z.number() } } }),
    TypeError,
    "both",
  );
  assertThrows(() => protocol({ commands: { a: { kind: z.string() } } }), TypeError, `"kind"`);
  assertThrows(() => protocol({ requests: { a: { ask: { reply: z.string() }, reply: z.void() } } }), TypeError);
});

Deno.test("actor() refuses a private message that its protocol also has", () => {
  assertThrows(
    () => actor({ protocol: counterProtocol, internal: { add: {} }, initial: () => 0, handle: (s) => s }),
    TypeError,
    `"add"`,
  );
});

Deno.test("ask() is answered after the commands sent before it", async () => {
  const { runtime } = watchedRuntime();
  const ref = runtime.spawn("counter", counter(40));
  ref.send({ kind: "add", amount: 1 });
  ref.send({ kind: "add", amount: 1 });
  assertEquals(await runtime.settle(ref.ask({ kind: "read" })), 42);
  await runtime.stop();
});

Deno.test("a malformed command is a dead letter with the reason, and the actor lives", async () => {
  const { runtime, letters } = watchedRuntime();
  const ref = runtime.spawn("counter", counter());
  for (
    const bad of [{ kind: "add" }, { kind: "add", amount: 1, extra: 2 }, { kind: "jump" }, null, 7, { kind: "read" }]
  ) {
    ref.send(untyped(bad));
  }
  assertEquals(letters.map(({ actor, kind }) => [actor, kind]), [
    ["counter", "add"],
    ["counter", "add"],
    ["counter", "jump"],
    ["counter", "(no kind)"],
    ["counter", "(no kind)"],
    ["counter", "read"],
  ]);
  assertStringIncludes(letters[0].reason, "amount");
  assertStringIncludes(letters[1].reason, "extra");
  assertStringIncludes(letters[2].reason, "expected one of add, fail, finish");
  assertStringIncludes(letters[5].reason, "is a request");
  assertEquals(await runtime.settle(ref.ask({ kind: "read" })), 0);
  await runtime.stop();
});

Deno.test("a malformed request rejects at once and says why", async () => {
  const { runtime } = watchedRuntime();
  const ref = runtime.spawn("counter", counter());
  const error = await assertRejects(() => ref.ask(untyped({ kind: "read", page: 1 })), AskError, "page");
  assertEquals(error.failure, "invalid");
  await assertRejects(() => ref.ask(untyped({ kind: "add", amount: 1 })), AskError, "has no answer");
  await runtime.stop();
});

Deno.test("private messages cannot be sent from outside", async () => {
  const { runtime, letters } = watchedRuntime();
  const secret = actor({
    protocol: protocol({ commands: { go: {} }, requests: { seen: { ask: {}, reply: z.array(z.string()) } } }),
    internal: { tick: { n: z.number() } },
    initial: () => [] as string[],
    handle(seen, message, context) {
      if (message.kind === "seen") message.reply(seen);
      if (message.kind === "go") context.sendSelf({ kind: "tick", n: 1 });
      return [...seen, message.kind];
    },
  });
  const ref = runtime.spawn("secret", secret);
  ref.send(untyped({ kind: "tick", n: 1 }));
  ref.send({ kind: "go" });
  await runtime.settle();
  assertEquals(await runtime.settle(ref.ask({ kind: "seen" })), ["go", "tick"]);
  assertEquals(letters.map(({ kind }) => kind), ["tick"]);
  await runtime.stop();
});

Deno.test("ask() times out by the runtime's clock, naming actor, message and time", async () => {
  const { runtime } = watchedRuntime();
  const ref = runtime.spawn("counter", counter());
  const answer = ref.ask({ kind: "never" }, { timeoutMs: 250 });
  await runtime.advance(249);
  await assertRejects(() => runtime.settle(answer), Error, "still pending");
  await runtime.advance(1);
  const error = await assertRejects(() => answer, AskError, `ask "never" to "counter" got no answer in 250 ms`);
  assertEquals(error.failure, "timeout");
  assertThrows(() => ref.ask({ kind: "read" }, { timeoutMs: 0 }), RangeError);
  await runtime.stop();
});

Deno.test("reply may come later, once, or be a refusal", async () => {
  const p = protocol({
    commands: { open: {} },
    requests: {
      wait: { ask: {}, reply: z.string() },
      bad: { ask: {}, reply: z.string() },
      twice: { ask: {}, reply: z.string() },
    },
  });
  const gate = actor({
    protocol: p,
    initial: () => [] as ((s: string) => void)[],
    handle(waiting, message) {
      switch (message.kind) {
        case "wait":
          return [...waiting, message.reply];
        case "open":
          waiting.forEach((reply) => reply("open"));
          return [];
        case "bad":
          message.reply.refuse("the gate is rusty");
          return waiting;
        case "twice":
          message.reply("a");
          message.reply("b");
          return waiting;
      }
    },
  });
  const { runtime, log } = watchedRuntime();
  const ref = runtime.spawn("gate", gate);
  const waited = ref.ask({ kind: "wait" });
  await runtime.settle();
  ref.send({ kind: "open" });
  assertEquals(await runtime.settle(waited), "open");
  const refused = await assertRejects(() => runtime.settle(ref.ask({ kind: "bad" })), AskError, "the gate is rusty");
  assertEquals(refused.failure, "refused");
  assertEquals(await runtime.settle(ref.ask({ kind: "twice" })), "a");
  assertStringIncludes(log.join("\n"), `Cannot reply to "twice"`);
  await runtime.stop();
});

Deno.test("a reply of the wrong type is the replier's crash", async () => {
  const { runtime, log } = watchedRuntime();
  const liar = actor({
    protocol: counterProtocol,
    initial: () => 0,
    handle(state, message) {
      if (message.kind === "read") message.reply(untyped("many"));
      return state;
    },
  });
  const ref = runtime.spawn("liar", liar);
  const error = await assertRejects(
    () => runtime.settle(ref.ask({ kind: "read" })),
    AskError,
    "the reply is malformed",
  );
  assertEquals(error.failure, "stopped");
  assertEquals(log.length, 1);
  await runtime.stop();
});

Deno.test("an ended actor: commands are dead letters, asks reject at once, the unanswered ones too", async () => {
  const { runtime, letters } = watchedRuntime();
  const ref = runtime.spawn("counter", counter());
  const unanswered = ref.ask({ kind: "never" }, { timeoutMs: Infinity });
  ref.send({ kind: "fail" });
  ref.send({ kind: "add", amount: 1 });
  const queued = ref.ask({ kind: "read" });
  await runtime.settle();
  for (const ask of [unanswered, queued, ref.ask({ kind: "read" })]) {
    const error = await assertRejects(() => ask, AskError, "crashed: RangeError: told to fail");
    assertEquals(error.failure, "stopped");
  }
  ref.send({ kind: "add", amount: 2 });
  const reason = "crashed: RangeError: told to fail";
  assertEquals(letters, [{ actor: "counter", kind: "add", reason }, { actor: "counter", kind: "add", reason }]);
  runtime.lookup(counterProtocol, "nobody").send({ kind: "finish" });
  assertEquals(letters.at(-1), { actor: "nobody", kind: "finish", reason: "no such actor" });
  await assertRejects(() => runtime.lookup(counterProtocol, "nobody").ask({ kind: "read" }), AskError, "no such actor");
  await runtime.stop();
});

Deno.test("lookup() follows a name from one life to the next", async () => {
  const { runtime } = watchedRuntime();
  const byName = runtime.lookup(counterProtocol, "counter");
  runtime.spawn("counter", counter(1));
  assertThrows(() => runtime.spawn("counter", counter()), Error, "the name is taken");
  assertEquals(await runtime.settle(byName.ask({ kind: "read" })), 1);
  await runtime.stopActor(byName);
  runtime.spawn("counter", counter(2));
  assertEquals(await runtime.settle(byName.ask({ kind: "read" })), 2);
  await runtime.stop();
  assertThrows(() => runtime.spawn("late", counter()), Error, "the runtime has stopped");
});

/** Watches what it is told to, and remembers the notices. */
const watcherProtocol = protocol({
  commands: { watch: { ref: refTo(counterProtocol) }, unwatch: {} },
  requests: { notices: { ask: {}, reply: z.array(z.string()) } },
});
const watcher = actor({
  protocol: watcherProtocol,
  internal: { ended: { name: z.string(), reason: z.custom<Reason>() } },
  initial: () => ({ notices: [] as string[], cancels: [] as (() => void)[] }),
  handle(state, message, context) {
    switch (message.kind) {
      case "watch": {
        const { ref } = message;
        state.cancels.push(context.watch(ref, (reason) => ({ kind: "ended", name: ref.name, reason })));
        return state;
      }
      case "unwatch":
        state.cancels.forEach((cancel) => cancel());
        return state;
      case "ended":
        return { ...state, notices: [...state.notices, `${message.name} ${message.reason.kind}`] };
      case "notices":
        message.reply(state.notices);
        return state;
    }
  },
});

Deno.test("watch() tells each end with its reason, also of one already gone", async () => {
  const { runtime } = watchedRuntime();
  const eye = runtime.spawn("eye", watcher);
  const [a, b, c] = ["a", "b", "c"].map((name) => runtime.spawn(name, counter()));
  eye.send({ kind: "watch", ref: a });
  eye.send({ kind: "watch", ref: b });
  await runtime.settle();
  c.send({ kind: "fail" });
  b.send({ kind: "finish" });
  a.send({ kind: "fail" });
  await runtime.settle();
  eye.send({ kind: "watch", ref: c });
  eye.send({ kind: "watch", ref: runtime.lookup(counterProtocol, "nobody") });
  await runtime.settle();
  assertEquals(await runtime.settle(eye.ask({ kind: "notices" })), [
    "b stopped",
    "a crashed",
    "c crashed",
    "nobody absent",
  ]);
  const d = runtime.spawn("d", counter());
  eye.send({ kind: "watch", ref: d });
  eye.send({ kind: "unwatch" });
  await runtime.settle();
  d.send({ kind: "fail" });
  await runtime.settle();
  assertEquals((await runtime.settle(eye.ask({ kind: "notices" }))).length, 4);
  const reason = await runtime.terminated(a);
  assert(reason.kind === "crashed");
  assertEquals(reason.error, "RangeError: told to fail");
  assertStringIncludes(reason.stack!, "runtime_test.ts");
  await runtime.stop();
});

const eventsProtocol = protocol({ commands: { poke: {} } });

Deno.test("timers fire by the runtime's clock, in order, until cancelled or the actor's end", async () => {
  const { runtime } = watchedRuntime();
  const events: string[] = [];
  const ticker = actor({
    protocol: eventsProtocol,
    internal: { tick: {}, once: {}, cancelled: {} },
    initial(context) {
      context.after(25, { kind: "once" });
      context.after(5, { kind: "cancelled" })();
      return context.every(10, { kind: "tick" });
    },
    handle(cancel, message, context) {
      events.push(`${message.kind} ${context.now()}`);
      if (message.kind === "poke") cancel();
      return cancel;
    },
  });
  const ref = runtime.spawn("ticker", ticker);
  await runtime.advance(30);
  ref.send({ kind: "poke" });
  await runtime.advance(100);
  assertEquals(events, ["tick 10", "tick 20", "once 25", "tick 30", "poke 30"]);
  const other = runtime.spawn("other", ticker);
  await runtime.settle();
  await runtime.stopActor(other);
  await runtime.advance(100);
  assertEquals(events.length, 5);
  await runtime.stop();
});

Deno.test("testClock() runs what is due by time, then in the order it was set", () => {
  const clock = testClock(100);
  const events: string[] = [];
  clock.after(20, () => events.push(`late ${clock.now()}`));
  clock.after(10, () => {
    events.push(`a ${clock.now()}`);
    clock.after(5, () => events.push(`nested ${clock.now()}`));
  });
  clock.after(10, () => events.push(`b ${clock.now()}`));
  clock.after(12, () => events.push("never"))();
  assertEquals(clock.nextDue(), 110);
  clock.advance(15);
  assertEquals(events, ["a 110", "b 110", "nested 115"]);
  assertEquals([clock.now(), clock.nextDue()], [115, 120]);
});

Deno.test("an async handler finishes one message before the next, while others go on", async () => {
  const { runtime } = watchedRuntime();
  const events: string[] = [];
  const gate = Promise.withResolvers<void>();
  const p = protocol({ commands: { work: { n: z.number() } } });
  const worker = (name: string, wait: Promise<void>) =>
    actor({
      protocol: p,
      initial: () => {},
      handle: async (_, { n }) => {
        events.push(`${name}${n} begins`);
        await wait;
        events.push(`${name}${n} ends`);
      },
    });
  const slow = runtime.spawn("slow", worker("slow", gate.promise));
  const quick = runtime.spawn("quick", worker("quick", Promise.resolve()));
  for (const n of [1, 2]) [slow, quick].forEach((ref) => ref.send({ kind: "work", n }));
  const settled = runtime.settle();
  setTimeout(() => gate.resolve(), 5); // the world outside: settle waits for it
  await settled;
  assertEquals(events, [
    "slow1 begins",
    "quick1 begins",
    "quick1 ends",
    "quick2 begins",
    "quick2 ends",
    "slow1 ends",
    "slow2 begins",
    "slow2 ends",
  ]);
  await runtime.stop();
});

/** Asks another in its handler. */
const askerProtocol = protocol({
  requests: { relay: { ask: { to: refTo(counterProtocol), never: z.boolean() }, reply: z.string() } },
});
const asker = actor({
  protocol: askerProtocol,
  initial: () => {},
  handle: async (_, message, context) => {
    try {
      const kind = message.never ? "never" : "read";
      message.reply(`got ${await context.ask(message.to, { kind }, { timeoutMs: 50 })}`);
    } catch (error) {
      assertInstanceOf(error, AskError);
      message.reply(error.failure);
    }
  },
});

Deno.test("context.ask() waits inside a handler without stopping the others", async () => {
  const { runtime } = watchedRuntime();
  const to = runtime.spawn("counter", counter(5));
  const ref = runtime.spawn("asker", asker);
  assertEquals(await runtime.settle(ref.ask({ kind: "relay", to, never: false })), "got 5");
  const late = ref.ask({ kind: "relay", to, never: true });
  await runtime.advance(50);
  assertEquals(await late, "timeout");
  await runtime.stop();
});

Deno.test("stop() ends what waits, runs clean-up after the children's, last started first", async () => {
  const { runtime, log } = watchedRuntime();
  const events: string[] = [];
  const node = (name: string, children: ActorSpec[] = []): ActorSpec<typeof eventsProtocol> =>
    actor({
      protocol: eventsProtocol,
      initial: (context) => {
        children.forEach((child, i) => context.spawn(`${i}`, child));
        events.push(`+${name}`);
        return name;
      },
      handle: (state) => state,
      stopped: async (state, reason) => {
        await Promise.resolve();
        events.push(`-${state} ${reason.kind}`);
      },
    });
  const leaf = (name: string) => node(name);
  runtime.spawn("a", node("a", [leaf("a0"), leaf("a1")]));
  runtime.spawn("b", leaf("b"));
  const never = runtime.spawn("counter", counter());
  runtime.spawn("asker", asker).ask({ kind: "relay", to: never, never: true });
  await runtime.settle();
  await runtime.stop();
  assertEquals(events, ["+a", "+b", "+a0", "+a1", "-b stopped", "-a1 stopped", "-a0 stopped", "-a stopped"]);
  assertEquals(log, []);
});

Deno.test("a handler that does not end is abandoned after stopTimeoutMs", async () => {
  const log: string[] = [];
  const runtime = createRuntime({ log: (actor, text) => log.push(`${actor}: ${text}`) });
  const signals: AbortSignal[] = [];
  const ref = runtime.spawn(
    "stuck",
    actor({
      protocol: eventsProtocol,
      stopTimeoutMs: 10,
      initial: () => {},
      handle: async (_state, _message, context) => {
        signals.push(context.signal);
        await new Promise<void>(() => {});
      },
    }),
  );
  ref.send({ kind: "poke" });
  while (signals.length === 0) await new Promise((resolve) => setImmediate(resolve));
  await runtime.stop();
  assertEquals(log, ["stuck: did not stop within 10 ms and is abandoned"]);
  assert(signals[0].aborted);
});

Deno.test("a crash in initial() ends the actor, and its messages are not lost in silence", async () => {
  const { runtime, letters } = watchedRuntime();
  const broken = actor({
    protocol: eventsProtocol,
    initial: (): number => {
      throw new Error("no disk");
    },
    handle: (s) => s,
  });
  const ref = runtime.spawn("broken", broken);
  ref.send({ kind: "poke" });
  await runtime.settle();
  assertEquals(letters, [{ actor: "broken", kind: "poke", reason: "crashed: Error: no disk" }]);
  await runtime.stop();
});

Deno.test("a malformed message to oneself is a crash", async () => {
  const { runtime } = watchedRuntime();
  const confused = actor({
    protocol: eventsProtocol,
    initial: (context) => context.sendSelf(untyped({ kind: "pock" })),
    handle: (s) => s,
  });
  const ref = runtime.spawn("confused", confused);
  await runtime.settle();
  const reason = await runtime.terminated(ref);
  assert(reason.kind === "crashed");
  assertStringIncludes(reason.error, `unknown message "pock"`);
  await runtime.stop();
});

Deno.test("settle() gives up on actors that answer each other forever", async () => {
  const { runtime } = watchedRuntime();
  runtime.spawn(
    "echo",
    actor({
      protocol: eventsProtocol,
      initial: (context) => context.sendSelf({ kind: "poke" }),
      handle: (_s, message, context) => context.sendSelf(message),
    }),
  );
  await assertRejects(() => runtime.settle(), Error, "forever");
  await runtime.stop();
});

Deno.test("testRuntime() gives the same trace twice", async () => {
  async function trace(): Promise<string[]> {
    const events: string[] = [];
    const runtime = testRuntime({ onDeadLetter: ({ actor, kind }) => events.push(`dead ${actor} ${kind}`) });
    const p = protocol({ commands: { ball: { hops: z.number() } } });
    const refs: Ref<typeof p>[] = [];
    const player = (i: number) =>
      actor({
        protocol: p,
        internal: { tick: {} },
        initial: (context): void => void context.every(3 + i, { kind: "tick" }),
        handle: async (_, message, context) => {
          const text = message.kind === "ball" ? `${i} ball ${message.hops}` : `${i} tick`;
          events.push(`${context.now()} ${text}`);
          if (i % 2 === 0) await Promise.resolve();
          if (message.kind === "ball" && message.hops > 0) {
            refs[(i * 2 + 1) % 5].send({ kind: "ball", hops: message.hops - 1 });
            refs[(i + 3) % 5].send({ kind: "ball", hops: message.hops - 2 });
          } else if (message.kind === "ball" && message.hops < 0) throw new Error("dropped");
        },
      });
    for (let i = 0; i < 5; i++) refs.push(runtime.spawn(`player ${i}`, player(i)));
    refs[0].send({ kind: "ball", hops: 6 });
    await runtime.advance(12);
    await runtime.stop();
    return events;
  }
  const first = await trace();
  assert(first.length > 30 && first.some((event) => event.startsWith("dead")));
  assertEquals(await trace(), first);
});

Deno.test("createRuntime() runs by itself, and stop() leaves nothing behind", async () => {
  const runtime = createRuntime({ log: () => {} });
  const ref = runtime.spawn("counter", counter());
  const eye = runtime.spawn("eye", watcher);
  eye.send({ kind: "watch", ref });
  for (let n = 0; n < 1000; n++) ref.send({ kind: "add", amount: 1 });
  assertEquals(await ref.ask({ kind: "read" }), 1000);
  const unanswered = ref.ask({ kind: "never" });
  await runtime.stop();
  await assertRejects(() => unanswered, AskError, "stopped");
  await assertRejects(() => ref.ask({ kind: "read" }), AskError, "stopped");
});
