/** Several hosts, over loopback: joining, refusals, launchers' variables, a host that dies, and real launchers. */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertMatch,
  assertNotEquals,
  assertStringIncludes,
} from "@std/assert";
import {
  assertNoStackTrace,
  curve,
  freePort,
  inFolder,
  type Processes,
  rankOf,
  ranks,
  type Started,
  type StartOptions,
  tinyRecord,
  until,
} from "./processes.ts";
import { undisturbed } from "./undisturbed.ts";

const token = "a token of this test", host = "127.0.0.1", totalSteps = 16;

function record(folder: string, runtime: Record<string, unknown> = {}): string {
  return tinyRecord(folder, {
    data: { total_steps: totalSteps, micro_num: 2 },
    ckpt: { checkpoint_every: 4 },
    runtime: { max_restarts: 20, ...runtime },
  });
}

const words = (path: string, ...more: string[]) => ["train", "--config", path, "--backend", "cpu", "--json", ...more];

/** A root on a port of its own choosing, and the port. */
async function root(processes: Processes, path: string, more: string[], options: StartOptions) {
  const run = processes.start(words(path, "--host", host, "--port", "0", ...more), options);
  await run.err.until((text) => /--port \d+ --nproc N/.test(text), "the root's port");
  return { run, port: run.err.text.match(/--port (\d+) --nproc N/)![1]! };
}

const member = (processes: Processes, path: string, port: string, more: string[], options: StartOptions): Started =>
  processes.start(words(path, "--join", "--host", host, "--port", port, ...more), options);

const more = async (run: Started, count: number) => {
  const lines = () => run.out.text.split("\n").length - 1, base = lines();
  await run.out.until(() => lines() >= base + count, `${count} steps`);
};

Deno.test("train: members join a root; a wrong token, another record and too many ranks are refused in a sentence; a host that dies is replaced, or done without", () =>
  inFolder(async (parent, processes) => {
    const [rough, elastic] = ["rough", "elastic"].map((name) => {
      Deno.mkdirSync(`${parent}/${name}`);
      return `${parent}/${name}`;
    }) as [string, string];
    const env = { TROUPE_TOKEN: token };

    const path = record(rough), { curve: calm } = await undisturbed(path, 3), here = { folder: rough, env };
    const { run, port } = await root(processes, path, ["--world_size", "3"], here);
    const stranger = await member(processes, path, port, [], { ...here, env: { TROUPE_TOKEN: "b".repeat(20) } }).ended;
    assertEquals(stranger.code, 1);
    assertMatch(stranger.err, /Cannot join the root at 127\.0\.0\.1:\d+: .*is the token the same\?/);
    const other = await member(processes, path, port, ["--set", "adam.lr=0.5"], here).ended;
    assertEquals(other.code, 1);
    assertMatch(
      other.err,
      /refuses this host: it has another configuration: "lr: 0\.5" there, "lr: 0\.01" at the root/,
    );
    const crowd = await member(processes, path, port, ["--nproc", "3"], here).ended;
    assertMatch(crowd.err, /it brings 3 ranks, and 2 of 3 are missing/);
    for (const each of [stranger, other, crowd]) assertNoStackTrace(each);

    const first = member(processes, path, port, ["--nproc", "2"], here);
    await more(run, 6);
    await processes.signal("KILL", -first.group); // all of it, as when a machine fails
    await run.err.until((text) => text.split("Waiting for 2 of 3 ranks").length > 2, "the search for another host");
    const second = member(processes, path, port, ["--nproc", "2"], here);
    const [ended, its] = await Promise.all([run.ended, second.ended]);
    assertEquals([ended.code, its.code], [0, 0], ended.err + its.err);
    assertMatch(ended.err, /ALERT Host .* is gone: its connection closed/);
    assertStringIncludes(ended.err, "All 3 ranks are back and go on from ");
    assertStringIncludes(its.err, `Finished after step ${totalSteps}`);
    assertEquals(curve(rough), calm);

    const path2 = record(elastic, { elastic: true }), there = { folder: elastic, env };
    const over3 = ["--set", "parallel.zero1.size=3"]; // which two ranks cannot be
    const shrinking = await root(processes, path2, ["--world_size", "3", "--nproc", "2", ...over3], there);
    const lost = member(processes, path2, shrinking.port, over3, there);
    await more(shrinking.run, 6);
    await processes.signal("KILL", -lost.group);
    const done = await shrinking.run.ended;
    assertEquals(done.code, 0, done.err);
    assertStringIncludes(
      done.err,
      "Going on with 2 of 3 ranks (runtime.elastic), with the same batches; parallel.zero1.size is 2 now",
    );
    const actual = curve(elastic);
    assertEquals(actual.length, totalSteps);
    calm.forEach(({ loss, step }, index) => assertAlmostEquals(actual[index]!.loss, loss, 2e-4, `step ${step}`));
  }));

Deno.test("train: a thousand strangers who idle, scan and talk rubbish on the root's port keep no host out and change no step", () =>
  inFolder(async (folder, processes) => {
    const here = { folder, env: { TROUPE_TOKEN: token } }, path = record(folder);
    const { curve: calm } = await undisturbed(path, 2);
    const { run, port } = await root(processes, path, ["--world_size", "2"], here);
    const strangers: Deno.TcpConn[] = [];
    try {
      for (let i = 0; i < 1000; i++) {
        const stranger = await Deno.connect({ hostname: host, port: Number(port) });
        strangers.push(stranger);
        if (i % 3 === 1) await stranger.write(new TextEncoder().encode("GET / HTTP/1.1\r\n\r\n")).catch(() => {});
        if (i % 3 === 2) await stranger.write(crypto.getRandomValues(new Uint8Array(200))).catch(() => {});
      }
      const [ended, its] = await Promise.all([run.ended, member(processes, path, port, [], here).ended]);
      assertEquals([ended.code, its.code], [0, 0], ended.err + its.err);
      assertNoStackTrace(ended);
      assertEquals(curve(folder), calm);
      assert(ended.err.split("was refused").length < 100, "they do not fill the log");
    } finally {
      for (const stranger of strangers) stranger.close();
    }
  }));

Deno.test("train: where only a host's supervisor is killed its ranks go too, the run waits for another, and ends when restarts are used up", () =>
  inFolder(async (folder, processes) => {
    const env = { TROUPE_TOKEN: token }, path = record(folder, { max_restarts: 1 }), here = { folder, env };
    const { run, port } = await root(processes, path, ["--world_size", "2"], here);
    for (const attempt of [1, 2]) {
      const its = member(processes, path, port, [], here), pid = await rankOf(folder, attempt, 1);
      await more(run, 3);
      assert(await processes.signal("KILL", await processes.programOf(its)));
      assertNotEquals((await its.ended).code, 0);
      await until(async () => !await processes.alive(pid), "the end of its rank");
    }
    const { code, err } = await run.ended;
    assertEquals(code, 1);
    assertMatch(err, /ALERT Rank 1 was lost .*host .* is gone.*; starting all ranks again \(restart 1, of 1 within/);
    assertMatch(
      err,
      /Rank 1 was lost .* \(its restarts are used up: runtime\.max_restarts allows 1 within .*goes on\)/,
    );
    assertNoStackTrace({ code, err, out: "" });
    for (const { pid } of ranks(folder)?.ranks ?? []) assert(!await processes.alive(pid), "no rank is left");
  }));

Deno.test("train under torchrun-style variables: each process a rank; a SIGTERM to all of them saves and exits 0", () =>
  inFolder(async (folder, processes) => {
    const path = record(folder), port = String(freePort());
    const start = () =>
      [0, 1].map((rank) =>
        processes.start(words(path), {
          folder,
          env: {
            TROUPE_TOKEN: token,
            RANK: String(rank),
            LOCAL_RANK: String(rank),
            WORLD_SIZE: "2",
            MASTER_ADDR: host,
            MASTER_PORT: port,
          },
        })
      );
    const preempted = start();
    await more(preempted[0]!, 5);
    for (const { group } of preempted) await processes.signal("TERM", -group);
    for (const { ended } of preempted) {
      const { code, err } = await ended;
      assertEquals(code, 0, err);
    }
    const again = await Promise.all(start().map(({ ended }) => ended));
    assertEquals(again.map(({ code }) => code), [0, 0], again[0]!.err);
    assertMatch(again[0]!.err, /resumed from step \d+/);
    assertEquals(curve(folder).length, totalSteps);
  }));
