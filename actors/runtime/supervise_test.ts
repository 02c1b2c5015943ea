import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { z } from "zod";
import { actor, type Child, describeTree, protocol, stop, supervise, type SupervisorSpec, testRuntime } from "./mod.ts";

const p = protocol({
  commands: { fail: {}, finish: {} },
  requests: { life: { ask: {}, reply: z.number() } },
});

type Member = (name: string, significant?: boolean) => Child;

/** A supervised company whose members announce each start (`+a`) and end (`-a`). */
function company(build: (member: Member) => SupervisorSpec) {
  const events: string[] = [];
  const log: string[] = [];
  const lives = new Map<string, number>();
  /** Lives of a member that fail in their first state. */
  const stillborn = new Map<string, number[]>();
  const runtime = testRuntime({ log: (actor, text) => log.push(`${actor}: ${text}`) });
  const announcing = (name: string) =>
    actor({
      protocol: p,
      initial: () => {
        const life = (lives.get(name) ?? 0) + 1;
        lives.set(name, life);
        if (stillborn.get(name)?.includes(life)) throw new Error(`${name} is stillborn`);
        events.push(`+${name}`);
        return life;
      },
      handle(life, message) {
        if (message.kind === "fail") throw new Error(`${name} was told to fail`);
        if (message.kind === "finish") return stop;
        message.reply(life);
        return life;
      },
      stopped: () => void events.push(`-${name}`),
    });
  const c: Member = (name, significant = false) => ({ name, start: announcing(name), significant });
  const top = build(c);
  return {
    runtime,
    events,
    log,
    stillborn,
    start: async () => {
      const ref = runtime.spawn("top", top);
      await runtime.settle();
      return ref;
    },
    /** Tells one member, and returns what happened because of it. */
    tell: async (path: string, kind: "fail" | "finish") => {
      events.length = 0;
      runtime.lookup(p, `top/${path}`).send({ kind });
      await runtime.settle();
      return events.join(" ");
    },
    life: (path: string) => runtime.settle(runtime.lookup(p, `top/${path}`).ask({ kind: "life" })),
  };
}

Deno.test("supervise() starts children in order and stops them in reverse, restarts or not", async () => {
  const { start, tell, runtime, events } = company((c) => supervise([c("a"), c("b"), c("c")]));
  await start();
  assertEquals(events.join(" "), "+a +b +c");
  await tell("a", "fail");
  events.length = 0;
  await runtime.stop();
  assertEquals(events.join(" "), "-c -b -a");
});

Deno.test("supervise() starts a child again, and it alone, however it ended", async () => {
  const { start, tell, life, log, runtime } = company((c) => supervise([c("a"), c("b"), c("c")]));
  await start();
  assertEquals(await tell("b", "fail"), "-b +b");
  assertEquals(await tell("b", "finish"), "-b +b"); // it is not done when it says so
  assertEquals([await life("a"), await life("b"), await life("c")], [1, 3, 1]);
  assertEquals(log.filter((line) => line.startsWith("top: ")), [
    "top: b crashed: Error: b was told to fail; it was started again",
    "top: b stopped; it was started again",
  ]);
  await runtime.stop();
});

Deno.test("supervise() ends normally when its significant child is done", async () => {
  const { start, tell, runtime } = company((c) => supervise([c("a"), c("unit", true), c("b")]));
  const top = await start();
  assertEquals(await tell("unit", "finish"), "-unit -b -a");
  assertEquals(await runtime.terminated(top), { kind: "stopped" });
  await runtime.stop();
});

Deno.test("supervise() ends by the crash of its significant child, running or starting", async () => {
  for (const stillborn of [false, true]) {
    const { start, tell, runtime, stillborn: dead } = company((c) => supervise([c("a"), c("unit", true)]));
    if (stillborn) dead.set("unit", [1]);
    const top = await start();
    if (!stillborn) assertEquals(await tell("unit", "fail"), "-unit -a");
    const reason = await runtime.terminated(top);
    assert(reason.kind === "crashed");
    const how = stillborn ? "is stillborn" : "was told to fail";
    assertEquals(reason.error, `Error: unit crashed: Error: unit ${how}`);
    await runtime.stop();
  }
});

Deno.test("supervise() gives up beyond its budget, naming child, error and budget", async () => {
  const { start, tell, runtime, events } = company((c) =>
    supervise([c("a"), c("b")], { maxRestarts: 2, withinMs: 1000 })
  );
  const top = await start();
  await tell("b", "fail");
  await runtime.advance(500);
  await tell("a", "fail");
  await runtime.advance(499);
  assertEquals(await tell("b", "fail"), "-b -a");
  const reason = await runtime.terminated(top);
  assert(reason.kind === "crashed");
  assertEquals(
    reason.error,
    "Error: b crashed: Error: b was told to fail; restarts are used up: at most 2 within 1 s",
  );
  events.length = 0;
  await runtime.stop();
  assertEquals(events, []);
});

Deno.test("supervise() forgets restarts older than its period", async () => {
  const { start, tell, life, runtime } = company((c) => supervise([c("a")], { maxRestarts: 2, withinMs: 1000 }));
  await start();
  for (let i = 0; i < 6; i++) {
    assertEquals(await tell("a", "fail"), "-a +a");
    await runtime.advance(500);
  }
  assertEquals(await life("a"), 7);
  await runtime.stop();
});

Deno.test("supervise() counts a failed start as a restart, and later children wait for it", async () => {
  const { start, tell, runtime, events, stillborn } = company((c) =>
    supervise([c("a"), c("b"), c("c")], { maxRestarts: 3 })
  );
  stillborn.set("b", [1, 2, 4]);
  const top = await start();
  assertEquals(events.join(" "), "+a +b +c");
  assertEquals(await tell("b", "fail"), "-b -c -a"); // the third, and a fourth that one start more would have been
  const reason = await runtime.terminated(top);
  assert(reason.kind === "crashed");
  assertStringIncludes(reason.error, "b crashed: Error: b is stillborn; restarts are used up: at most 3 within 5 s");
  await runtime.stop();
});

Deno.test("supervise() gives up on a child that cannot start", async () => {
  const { start, runtime, events, stillborn } = company((c) => supervise([c("a"), c("b"), c("c")]));
  stillborn.set("b", [1, 2, 3, 4]);
  const top = await start();
  assertEquals(events.join(" "), "+a -a");
  const reason = await runtime.terminated(top);
  assert(reason.kind === "crashed");
  assertStringIncludes(reason.error, "b crashed: Error: b is stillborn");
  await runtime.stop();
});

Deno.test("supervise() nested: a crash stays inside until a budget is spent", async () => {
  const { start, tell, runtime, events, log } = company((c) =>
    supervise([c("a"), { name: "inner", start: supervise([c("b"), c("c")], { maxRestarts: 1 }) }])
  );
  await start();
  assertEquals(await tell("inner/b", "fail"), "-b +b");
  // The second within the period ends the inner supervisor, which its own supervisor starts afresh.
  assertEquals(await tell("inner/c", "fail"), "-c -b +b +c");
  assertEquals(log.filter((line) => line.startsWith("top: ")).length, 1);
  assertStringIncludes(
    log.at(-1)!,
    "top: inner crashed: Error: c crashed: Error: c was told to fail; restarts are used up",
  );
  assertEquals(await tell("a", "fail"), "-a +a");
  events.length = 0;
  await runtime.stop();
  assertEquals(events.join(" "), "-c -b -a");
});

Deno.test("supervise() handles deaths at the same moment, each once", async () => {
  const { start, tell, runtime, life } = company((c) => supervise([c("a"), c("b"), c("c")]));
  await start();
  runtime.lookup(p, "top/a").send({ kind: "fail" });
  assertEquals(await tell("c", "fail"), "-a -c +a +c");
  assertEquals([await life("a"), await life("b"), await life("c")], [2, 1, 2]);
  await runtime.stop();
});

Deno.test("supervise() calls a start function for each start", async () => {
  const runtime = testRuntime();
  let calls = 0;
  const start = () => {
    const call = ++calls;
    return actor({
      protocol: p,
      initial: () => call,
      handle(n, message) {
        if (message.kind !== "life") throw new Error("down");
        message.reply(n);
        return n;
      },
    });
  };
  runtime.spawn("top", supervise([{ name: "a", start }]));
  const a = runtime.lookup(p, "top/a");
  await runtime.settle();
  a.send({ kind: "fail" });
  await runtime.settle();
  assertEquals(await runtime.settle(a.ask({ kind: "life" })), 2);
  await runtime.stop();
});

Deno.test("supervise() stops while a child is still starting", async () => {
  const runtime = testRuntime();
  const never = actor({
    protocol: p,
    initial: async (context) => {
      const gone = runtime.lookup(p, "other");
      return await context.ask(gone, { kind: "life" }, { timeoutMs: 60_000 });
    },
    handle: (s) => s,
  });
  const silent = actor({ protocol: p, initial: () => 0, handle: (s) => s });
  runtime.spawn("other", silent);
  const top = runtime.spawn("top", supervise([{ name: "never", start: never }]));
  await runtime.settle();
  await runtime.stopActor(top);
  assertEquals(await runtime.terminated(top), { kind: "stopped" });
  await runtime.stop();
});

Deno.test("supervise() refuses trees that make no sense", () => {
  const leaf = { name: "a", start: actor({ protocol: p, initial: () => 0, handle: (s) => s }) };
  assertThrows(() => supervise([leaf, leaf]), RangeError, `"a"`);
  assertThrows(() => supervise([], { maxRestarts: -1 }), RangeError, "maxRestarts=-1");
  assertThrows(() => supervise([], { withinMs: 0 }), RangeError, "withinMs=0");
});

Deno.test("describeTree() prints the tree", () => {
  const start = actor({ protocol: p, initial: () => 0, handle: (s) => s });
  const tree = supervise([
    { name: "monitor", start },
    {
      name: "ranks",
      start: supervise([{ name: "rank 0", start }, { name: "rank 1", start: () => start }], { maxRestarts: 0 }),
      significant: true,
    },
    { name: "last", start },
  ]);
  assertEquals(
    describeTree("run", tree),
    `run: at most 3 restarts in 5 s
├─ monitor
├─ ranks: at most 0 restarts in 5 s, significant
│  ├─ rank 0
│  └─ rank 1
└─ last`,
  );
});
