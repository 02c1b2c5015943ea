import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { z } from "zod";
import {
  actor,
  type Child,
  child,
  describeTree,
  protocol,
  type Restart,
  stop,
  type Strategy,
  supervise,
  type SupervisorSpec,
  testRuntime,
} from "./mod.ts";

const p = protocol({
  commands: { fail: {}, finish: {} },
  requests: { life: { ask: {}, reply: z.number() } },
});

type Member = (name: string, restart?: Restart, significant?: boolean) => Child;

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
  const c: Member = (name, restart = "permanent", significant = false) =>
    child(name, announcing(name), { restart, significant });
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
  const { start, tell, runtime, events } = company((c) => supervise("oneForOne", [c("a"), c("b"), c("c")]));
  await start();
  assertEquals(events.join(" "), "+a +b +c");
  await tell("a", "fail");
  events.length = 0;
  await runtime.stop();
  assertEquals(events.join(" "), "-c -b -a");
});

const expected: Record<Strategy, string> = {
  oneForOne: "-b +b",
  oneForAll: "-b -c -a +a +b +c",
  restForOne: "-b -c +b +c",
};
for (const [strategy, trace] of Object.entries(expected)) {
  Deno.test(`supervise() ${strategy}: the second of three crashes`, async () => {
    const { start, tell, life, runtime } = company((c) => supervise(strategy as Strategy, [c("a"), c("b"), c("c")]));
    await start();
    assertEquals(await tell("b", "fail"), trace);
    const expectedLife = (name: string) => trace.includes(`+${name}`) ? 2 : 1;
    for (const name of ["a", "b", "c"]) assertEquals(await life(name), expectedLife(name), name);
    assertEquals(await tell("b", "finish"), trace); // a permanent child is not done when it says so
    await runtime.stop();
  });
}

Deno.test("supervise() restarts a transient child only after a crash, a temporary one never", async () => {
  const { start, tell, runtime } = company((c) =>
    supervise("oneForOne", [c("a"), c("t", "transient"), c("x", "temporary"), c("y", "temporary")])
  );
  const top = await start();
  assertEquals(await tell("t", "fail"), "-t +t");
  assertEquals(await tell("t", "finish"), "-t");
  assertEquals(await tell("x", "fail"), "-x");
  assertEquals(await tell("y", "finish"), "-y");
  assertEquals(await tell("a", "fail"), "-a +a");
  assertEquals(await runtime.settle(top.ask({ kind: "children" })), [
    { name: "a", alive: true, restarts: 1 },
    { name: "t", alive: false, restarts: 1 },
    { name: "x", alive: false, restarts: 0 },
    { name: "y", alive: false, restarts: 0 },
  ]);
  await runtime.stop();
});

Deno.test("supervise() oneForAll brings back the finished and drops the temporary", async () => {
  const { start, tell, runtime } = company((c) =>
    supervise("oneForAll", [c("a"), c("t", "transient"), c("x", "temporary")])
  );
  await start();
  assertEquals(await tell("t", "finish"), "-t");
  assertEquals(await tell("a", "fail"), "-a -x +a +t");
  await runtime.stop();
});

Deno.test("supervise() ends normally when its significant child is done", async () => {
  const { start, tell, runtime } = company((c) =>
    supervise("oneForOne", [c("a"), c("unit", "transient", true), c("b")])
  );
  const top = await start();
  assertEquals(await tell("unit", "fail"), "-unit +unit");
  assertEquals(await tell("unit", "finish"), "-unit -b -a");
  assertEquals(await runtime.terminated(top), { kind: "stopped" });
  await runtime.stop();
});

Deno.test("supervise() ends when a significant temporary child crashes", async () => {
  const { start, tell, runtime } = company((c) => supervise("oneForOne", [c("a"), c("unit", "temporary", true)]));
  const top = await start();
  assertEquals(await tell("unit", "fail"), "-unit -a");
  assertEquals(await runtime.terminated(top), { kind: "stopped" });
  await runtime.stop();
});

Deno.test("supervise() gives up beyond its budget, naming child, error and budget", async () => {
  const { start, tell, runtime, events } = company((c) =>
    supervise("oneForOne", [c("a"), c("b")], { maxRestarts: 2, withinMs: 1000 })
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
    `Error: supervisor "top" gives up: its children ended 3 times in 1000 ms, at most 2 restarts are allowed; ` +
      `the last was "b": crashed: Error: b was told to fail`,
  );
  events.length = 0;
  await runtime.stop();
  assertEquals(events, []);
});

Deno.test("supervise() forgets restarts older than its period", async () => {
  const { start, tell, life, runtime } = company((c) =>
    supervise("oneForOne", [c("a")], { maxRestarts: 2, withinMs: 1000 })
  );
  await start();
  for (let i = 0; i < 6; i++) {
    assertEquals(await tell("a", "fail"), "-a +a");
    await runtime.advance(500);
  }
  assertEquals(await life("a"), 7);
  await runtime.stop();
});

Deno.test("supervise() counts a failed start as a restart, and later children wait for it", async () => {
  const { start, tell, runtime, events, stillborn, log } = company((c) =>
    supervise("oneForAll", [c("a"), c("b"), c("c")], { maxRestarts: 3 })
  );
  stillborn.set("b", [1, 3]);
  await start();
  assertEquals(events.join(" "), "+a -a +a +b +c");
  assertEquals(await tell("a", "fail"), "-a -c -b +a -a +a +b +c");
  assertEquals(log.filter((line) => line.startsWith("top: restarting")), [
    `top: restarting "b" (oneForAll): crashed: Error: b is stillborn`,
    `top: restarting "a" (oneForAll): crashed: Error: a was told to fail`,
    `top: restarting "b" (oneForAll): crashed: Error: b is stillborn`,
  ]);
  await runtime.stop();
});

Deno.test("supervise() gives up on a child that cannot start", async () => {
  const { start, runtime, events, stillborn } = company((c) => supervise("restForOne", [c("a"), c("b"), c("c")]));
  stillborn.set("b", [1, 2, 3, 4]);
  const top = await start();
  assertEquals(events.join(" "), "+a -a");
  const reason = await runtime.terminated(top);
  assert(reason.kind === "crashed");
  assertStringIncludes(reason.error, `the last was "b": crashed: Error: b is stillborn`);
  await runtime.stop();
});

const nested = (c: Member) =>
  supervise("restForOne", [
    c("monitor"),
    child("loaders", supervise("oneForOne", [c("l0"), c("l1")])),
    child("ranks", supervise("oneForAll", [c("r0"), c("r1")], { maxRestarts: 1 })),
  ]);

Deno.test("supervise() nested: a crash stays inside until a budget is spent", async () => {
  const { start, tell, runtime, events, log } = company(nested);
  await start();
  assertEquals(events.join(" "), "+monitor +l0 +l1 +r0 +r1");
  assertEquals(await tell("loaders/l0", "fail"), "-l0 +l0");
  assertEquals(await tell("ranks/r0", "fail"), "-r0 -r1 +r0 +r1");
  // The second within the period ends the inner supervisor, which its own supervisor starts afresh.
  assertEquals(await tell("ranks/r1", "fail"), "-r1 -r0 +r0 +r1");
  assertEquals(log.filter((line) => line.startsWith("top: ")).length, 1);
  assertStringIncludes(
    log.at(-1)!,
    `top: restarting "ranks" (restForOne): crashed: Error: supervisor "top/ranks" gives`,
  );
  assertEquals(await tell("ranks/r1", "fail"), "-r1 -r0 +r0 +r1");
  assertEquals(await tell("monitor", "fail"), "-monitor -r1 -r0 -l1 -l0 +monitor +l0 +l1 +r0 +r1");
  events.length = 0;
  await runtime.stop();
  assertEquals(events.join(" "), "-r1 -r0 -l1 -l0 -monitor");
});

Deno.test("supervise() handles deaths at the same moment, each once", async () => {
  const { start, tell, runtime, life } = company((c) => supervise("oneForAll", [c("a"), c("b"), c("c")]));
  await start();
  runtime.lookup(p, "top/a").send({ kind: "fail" });
  assertEquals(await tell("c", "fail"), "-a -c -b +a +b +c");
  assertEquals(await life("b"), 2);
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
  runtime.spawn("top", supervise("oneForOne", [child("a", start)]));
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
  const top = runtime.spawn("top", supervise("oneForOne", [child("never", never)]));
  await runtime.settle();
  await runtime.stopActor(top);
  assertEquals(await runtime.terminated(top), { kind: "stopped" });
  await runtime.stop();
});

Deno.test("supervise() and child() refuse trees that make no sense", () => {
  const leaf = actor({ protocol: p, initial: () => 0, handle: (s) => s });
  assertThrows(() => supervise("oneForOne", [child("a", leaf), child("a", leaf)]), RangeError, `"a"`);
  assertThrows(() => supervise("oneForOne", [], { maxRestarts: -1 }), RangeError, "maxRestarts=-1");
  assertThrows(() => supervise("oneForOne", [], { withinMs: 0 }), RangeError, "withinMs=0");
  assertThrows(() => child("a", leaf, { significant: true }), TypeError, "not permanent");
});

Deno.test("describeTree() prints the tree", () => {
  const leaf = actor({ protocol: p, initial: () => 0, handle: (s) => s });
  const tree = supervise("restForOne", [
    child("monitor", leaf),
    child("ranks", supervise("oneForAll", [child("rank 0", leaf), child("rank 1", () => leaf)], { maxRestarts: 0 }), {
      restart: "transient",
      significant: true,
    }),
    child("last", leaf, { restart: "temporary" }),
  ]);
  assertEquals(
    describeTree("run", tree),
    `run: restForOne, at most 3 restarts in 5000 ms
├─ monitor: permanent
├─ ranks: oneForAll, at most 0 restarts in 5000 ms, transient, significant
│  ├─ rank 0: permanent
│  └─ rank 1: permanent
└─ last: temporary`,
  );
});
