/** Hosts in one process, over real connections: who is let in, and what the others are told. */
import { assertEquals, assertMatch, assertRejects, assertStringIncludes } from "@std/assert";
import { type HostsOptions, openHosts, refusals } from "./hosts.ts";
import { joinHosts, type MemberOptions } from "./member.ts";

const hostname = "127.0.0.1", token = "a token of this test";

/** One host that wants to join, after `change`. @returns what the root's people were told of it */
async function joining(
  { root = {}, member = {} }: { root?: Partial<HostsOptions>; member?: Partial<MemberOptions> },
  sentence: RegExp,
): Promise<string> {
  const notices: string[] = [], told = Promise.withResolvers<void>();
  const hosts = openHosts({
    hostname,
    port: 0,
    token,
    encrypt: false,
    nproc: 1,
    world: 2,
    version: "1.0",
    record: "adam:\n  lr: 0.1\n",
    onNotice(text) {
      notices.push(text);
      told.resolve();
    },
    onStop: () => {},
    ...root,
  });
  try {
    const error = await assertRejects(() =>
      joinHosts({
        root: { hostname, port: hosts.port },
        token,
        encrypt: false,
        name: "node7",
        nproc: 1,
        version: "1.0",
        record: () => "adam:\n  lr: 0.1\n",
        start: () => {
          throw new TypeError("nobody is asked to start a rank");
        },
        onNotice: () => {},
        timeoutMs: 60_000,
        signal: new AbortController().signal,
        leave: new AbortController().signal,
        ...member,
      }), Error);
    assertMatch(error.message, sentence);
    await told.promise;
    assertEquals(hosts.ranks, 1, "it is not of the run");
  } finally {
    await hosts[Symbol.asyncDispose]();
  }
  return notices.join("\n");
}

Deno.test("joinHosts() is refused with another version, and both sides are told which host has which", async () => {
  const told = await joining(
    { member: { version: "1.1" } },
    /^The root at 127\.0\.0\.1:\d+ refuses this host: it runs Troupe 1\.1, the root runs 1\.0$/,
  );
  assertEquals(told, "Host node7 (127.0.0.1) was refused: it runs Troupe 1.1, the root runs 1.0");
});

Deno.test("joinHosts() is refused with another record, and both sides are told what differs on which host", async () => {
  const told = await joining(
    { member: { record: () => "adam:\n  lr: 0.2\n" } },
    /refuses this host: it has another configuration: "lr: 0\.2" there, "lr: 0\.1" at the root$/,
  );
  assertStringIncludes(told, 'Host node7 (127.0.0.1) was refused: it has another configuration: "lr: 0.2" there');
});

Deno.test("joinHosts() with more ranks than are missing, or another token, learns so", async () => {
  await joining(
    { member: { nproc: 2 } },
    /it brings 2 ranks, and 1 of 2 are missing; --nproc of that number would work/,
  );
  const told = await joining(
    { member: { token: "b".repeat(20) } },
    /Cannot join the root at .*is the token the same\?/,
  );
  assertMatch(told, /A connection from 127\.0\.0\.1 was refused: .*does not know the run's token/);
});

for (const encrypt of [false, true]) {
  Deno.test(`joinHosts() ${encrypt ? "with" : "without"} runtime.encrypt, where the root has it otherwise, learns so`, async () => {
    const told = await joining(
      { root: { encrypt: !encrypt }, member: { encrypt } },
      new RegExp(`runtime\\.encrypt is ${encrypt} here, ${!encrypt} at the other end`),
    );
    assertMatch(told, /A connection from 127\.0\.0\.1 was refused: .*runtime\.encrypt is /);
  });
}

Deno.test("refusals() tells of an address at once, then once in a while with a count", () => {
  const notices: string[] = [];
  let now = 0;
  const refused = refusals((text) => notices.push(text), () => now);
  for (let i = 0; i < 1000; i++) refused("no token", "10.0.0.9");
  refused("another token", "10.0.0.2");
  now = 10_000;
  refused("no token", "10.0.0.9");
  assertEquals(notices, [
    "A connection from 10.0.0.9 was refused: no token",
    "A connection from 10.0.0.2 was refused: another token",
    "A connection from 10.0.0.9 was refused: no token (and 999 more from there before)",
  ]);
});
