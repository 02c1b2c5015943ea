import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import {
  actor,
  type ActorSpec,
  AskError,
  createRuntime,
  Ended,
  type Host,
  hosted,
  inProcess,
  inWorker,
  type ProcessOptions,
  type Reason,
  type Runtime,
  spawnProcess,
  spawnWorker,
  supervise,
} from "./mod.ts";
import { echo, echoProtocol, noteProtocol } from "./testdata/echo.ts";

const main = new URL("./testdata/echo_main.ts", import.meta.url);
const processOptions: ProcessOptions = { args: ["run", main.pathname], stderr: "null" };

const places: Record<string, () => ActorSpec<typeof echoProtocol>> = {
  "this thread": () => echo(),
  "a worker": () => inWorker(echoProtocol, { url: main }),
  "a process": () => inProcess(echoProtocol, processOptions),
};

async function withRuntime(run: (runtime: Runtime, log: string[]) => Promise<void>): Promise<void> {
  const log: string[] = [];
  const runtime = createRuntime({ log: (actor, text) => log.push(`${actor}: ${text}`), askTimeoutMs: 300_000 });
  try {
    await run(runtime, log);
  } finally {
    await runtime.stop();
  }
}

for (const [place, spec] of Object.entries(places)) {
  Deno.test(`a reference works the same for an actor in ${place}`, () =>
    withRuntime(async (runtime) => {
      const seen: string[] = [];
      const done = Promise.withResolvers<void>();
      const to = runtime.spawn(
        "notes",
        actor({
          protocol: noteProtocol,
          initial: () => seen,
          handle(seen, message) {
            if (message.kind === "note") seen.push(message.text);
            else message.reply("hello");
            if (seen.length === 2) done.resolve();
            return seen;
          },
        }),
      );
      const ref = runtime.spawn("echo", spec());
      const value = { list: [1, "two", null], loss: NaN };
      assertEquals(await ref.ask({ kind: "echo", value }), value);
      ref.send({ kind: "tell", to, text: "one" });
      ref.send({ kind: "tell", to, text: "two" });
      assertEquals(await ref.ask({ kind: "greetVia", to }), "hello");
      assertEquals(seen, ["one", "two"]);
      // deno-lint-ignore no-explicit-any -- a malformed message
      const error = await assertRejects(() => ref.ask({ kind: "echo", extra: 1 } as any), AskError, "extra");
      assertEquals(error.failure, "invalid");
      ref.send({ kind: "finish" });
      assertEquals(await runtime.terminated(ref), { kind: "stopped" });
      await assertRejects(() => ref.ask({ kind: "pid" }), AskError, "stopped");
    }));

  Deno.test(`a crash in ${place} tells the error to whoever watches or asks`, () =>
    withRuntime(async (runtime) => {
      const ref = runtime.spawn("echo", spec());
      const waiting = ref.ask({ kind: "never" });
      ref.send({ kind: "crash" });
      const reason = await runtime.terminated(ref);
      assert(reason.kind === "crashed");
      assertEquals(reason.error, "RangeError: told to crash");
      const error = await assertRejects(() => waiting, AskError, "told to crash");
      assert(error.cause instanceof Ended && error.cause.reason.kind === "crashed");
    }));
}

Deno.test("a process killed by SIGKILL is known by its signal, and restarted", () =>
  withRuntime(async (runtime, log) => {
    const hosts: Host[] = [];
    const open = () => {
      hosts.push(spawnProcess(processOptions));
      return hosts.at(-1)!;
    };
    const tree = supervise([{ name: "echo", start: hosted(echoProtocol, open) }]);
    await runtime.started(runtime.spawn("top", tree));
    const ref = runtime.lookup(echoProtocol, "top/echo");
    const pid = await ref.ask({ kind: "pid" });
    assertEquals(pid, hosts[0].pid);
    const ended = runtime.terminated(ref);
    const waiting = ref.ask({ kind: "never" });
    hosts[0].kill("SIGKILL");
    assertEquals(await ended, { kind: "killed", signal: "SIGKILL", number: 9 });
    await assertRejects(() => waiting, AskError, "killed by SIGKILL (9)");
    await new Promise((resolve) => setImmediate(resolve)); // the name is free until the supervisor has acted
    assert(await ref.ask({ kind: "pid" }) !== pid);
    assertEquals(hosts.length, 2);
    assertStringIncludes(log.join("\n"), "top: echo killed by SIGKILL (9); it was started again");
  }));

const ends: [string, keyof typeof places, Reason["kind"], string][] = [
  ["Deno.exit()", "a process", "exited", "code 7"],
  ["Deno.exit()", "a worker", "exited", "code 7"],
  ["an uncaught error", "a process", "exited", "code 1"],
  ["an uncaught error", "a worker", "crashed", "told to blow up"],
  ["a stray line among the frames", "a process", "lost", "bad frame"],
];
for (const [what, place, kind, text] of ends) {
  Deno.test(`${what} in ${place} is noticed`, () =>
    withRuntime(async (runtime, log) => {
      const ref = runtime.spawn("echo", places[place]());
      if (what === "Deno.exit()") ref.send({ kind: "exit", code: 7 });
      else ref.send({ kind: what === "an uncaught error" ? "blowUp" : "babble" });
      const reason = await runtime.terminated(ref);
      assertEquals(reason.kind, kind);
      assertStringIncludes(log.join("\n"), text);
    }));
}

Deno.test("a program that cannot start is an end with its exit code, not a hang", () =>
  withRuntime(async (runtime) => {
    const ref = runtime.spawn("echo", inProcess(echoProtocol, { ...processOptions, args: ["run", "/no/such.ts"] }));
    const waiting = ref.ask({ kind: "pid" });
    assertEquals(await runtime.terminated(ref), { kind: "exited", code: 1 });
    await assertRejects(() => waiting, AskError, "exited with code 1");
    const command = runtime.spawn("other", inProcess(echoProtocol, { ...processOptions, command: "/no/such" }));
    const reason = await runtime.terminated(command);
    assertEquals(reason.kind, "crashed");
  }));

Deno.test("a program that never joins is killed after startTimeoutMs", () =>
  withRuntime(async (runtime) => {
    const args = ["eval", "await new Promise((resolve) => setTimeout(resolve, 1e6))"];
    const spec = inProcess(echoProtocol, { ...processOptions, args, startTimeoutMs: 300 });
    const ref = runtime.spawn("echo", spec);
    assertEquals(await runtime.terminated(ref), { kind: "lost", detail: "did not join within 300 ms" });
  }));

Deno.test("a process may use what its parent exports", () =>
  withRuntime(async (runtime) => {
    const heard = Promise.withResolvers<string>();
    const listener = runtime.spawn(
      "notes",
      actor({
        protocol: noteProtocol,
        initial: () => {},
        handle(_, message) {
          if (message.kind === "note") heard.resolve(message.text);
        },
      }),
    );
    const ref = runtime.spawn("echo", inProcess(echoProtocol, { ...processOptions, exports: { notes: listener } }));
    ref.send({ kind: "tellParent", text: "from below" });
    await ref.ask({ kind: "pid" }); // arrives after it
    assertEquals(await heard.promise, "from below");
  }));

Deno.test("spawnProcess() and spawnWorker() end what does not listen after graceMs", async () => {
  const deaf = "await new Promise((resolve) => setTimeout(resolve, 1e6))";
  const process = spawnProcess({ args: ["eval", deaf], graceMs: 50 });
  process.channel.receive(() => {});
  process.channel.close();
  assertEquals(await process.ended, { kind: "killed", signal: "SIGKILL", number: 9 });
  process.kill(); // too late, and no harm
  const url = `data:text/javascript,${encodeURIComponent("setInterval(() => {}, 1000)")}`;
  const worker = spawnWorker({ url, graceMs: 50 });
  worker.channel.close();
  assertEquals((await worker.ended).kind, "exited");
});

Deno.test("an endless loop is noticed by the heartbeat, and killed", () =>
  withRuntime(async (runtime) => {
    const heartbeat = { everyMs: 100, timeoutMs: 1000 };
    const ref = runtime.spawn("echo", inProcess(echoProtocol, { ...processOptions, heartbeat, graceMs: 50 }));
    ref.send({ kind: "spin" });
    const reason = await runtime.terminated(ref);
    assert(reason.kind === "lost");
    assertStringIncludes(reason.detail, "no sign of life");
  }));

/** Runs a parent program that starts an echo actor in its own process or worker, which shares its standard error. */
async function startParent(...mode: string[]) {
  const script = new URL("./testdata/parent_main.ts", import.meta.url).pathname;
  const permissions = [`--allow-run=${Deno.execPath()}`, `--allow-read=${new URL(".", import.meta.url).pathname}`];
  const args = ["run", ...permissions, script, ...mode];
  const parent = new Deno.Command(Deno.execPath(), { args, stdout: "piped", stderr: "piped" }).spawn();
  const reader = parent.stdout.getReader();
  const { value } = await reader.read();
  return { parent, reader, pid: Number(new TextDecoder().decode(value)) };
}

Deno.test("a process does not outlive a parent killed by SIGKILL", async () => {
  const { parent, reader, pid } = await startParent("process", "wait");
  assert(pid > 0);
  parent.kill("SIGKILL");
  assertEquals((await parent.status).signal, "SIGKILL");
  await parent.stderr.pipeTo(new WritableStream()); // open for as long as the child lives
  await reader.cancel();
});

for (const place of ["process", "worker"]) {
  Deno.test(`a ${place} does not keep its finished parent alive`, async () => {
    const { parent, reader, pid } = await startParent(place, "finish");
    assert(pid > 0);
    assertEquals((await parent.status).code, 0);
    await parent.stderr.pipeTo(new WritableStream());
    await reader.cancel();
  });
}
