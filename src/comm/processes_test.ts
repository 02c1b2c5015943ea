/** Ranks in processes: what happens to the others when one is killed, or freezes. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { fileURLToPath } from "node:url";
import { hostname } from "./_testing.ts";
import { socketFolder } from "./transport/local_sockets.ts";
import { openRendezvous } from "./transport/rendezvous.ts";

interface Line {
  readonly round?: number;
  readonly sum?: number;
  readonly end?: string;
}

/** Runs a world of processes; `disturb` is called when rank 0 has done some rounds. */
async function processes(
  world: number,
  rounds: number,
  disturb?: (children: Deno.ChildProcess[]) => void,
  /** The path of a rank's Unix socket, and what it may talk to. */
  place: (rank: number, port: number) => { socket?: string; permissions: readonly string[] } = () => (
    { permissions: [`--allow-net=${hostname}`] }
  ),
): Promise<Line[][]> {
  const meeting = openRendezvous({ hostname, token: "secret", world });
  const script = fileURLToPath(new URL("./_rank_testing.ts", import.meta.url));
  const children = Array.from({ length: world }, (_, rank) => {
    const { socket, permissions } = place(rank, meeting.port);
    const own = [...[rank, world, meeting.port, rounds].map(String), ...(socket === undefined ? [] : [socket])];
    return new Deno.Command(Deno.execPath(), {
      args: ["run", "--quiet", "--no-prompt", "--no-check", ...permissions, script, ...own],
      stdin: "null",
      stdout: "piped",
    }).spawn();
  });
  let disturbed = false;
  const read = async (child: Deno.ChildProcess, rank: number) => {
    let text = "";
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
      text += chunk;
      if (rank === 0 && disturb && !disturbed && text.includes('"round":3,')) {
        disturbed = true;
        disturb(children);
      }
    }
    return text.trim().split("\n").filter(Boolean).flatMap((line): Line[] => {
      try {
        return [JSON.parse(line)];
      } catch {
        return []; // cut off in the middle
      }
    });
  };
  const output = children.map(read);
  const lines = await Promise.all(output.slice(0, disturb ? world - 1 : world));
  try {
    if (disturb) children.at(-1)!.kill("SIGKILL"); // a frozen one hears nothing else
  } catch {
    // ended already
  }
  await Promise.all([...output, ...children.map(({ status }) => status)]);
  await meeting.close();
  return lines;
}

Deno.test("ranks in processes sum over TCP", async () => {
  for (const own of await processes(3, 2)) {
    assertEquals(own, [{ round: 0, sum: 3 }, { round: 1, sum: 6 }, { end: "finished" }]);
  }
});

/** Sums of ranks of which each has this socket. @param allowed sockets that they may use */
const sums = (sockets: readonly (string | undefined)[], allowed: readonly string[], tcp: boolean) =>
  processes(sockets.length, 2, undefined, (rank, port) => {
    const [socket] = sockets.slice(rank, rank + 1),
      folders = sockets.flatMap((path) => path?.replace(/.[^/]$/, "") ?? []);
    // Without TCP between ranks: to the root, and a port of its own.
    const net = [
      ...(tcp ? [hostname] : [`${hostname}:0`, `${hostname}:${port}`]),
      ...allowed.map((path) => `unix:${path}`),
    ];
    const permissions = [`--allow-net=${net}`, `--allow-read=${folders}`, `--allow-write=${folders}`];
    return { ...(socket === undefined ? {} : { socket }), permissions };
  });
const exists = (path: string) => Deno.lstat(path).then(() => true, () => false);

Deno.test({
  name: "ranks of one host meet on Unix sockets alone, in a folder that is gone when they have met",
  ignore: Deno.build.os === "windows",
  async fn() {
    const folder = socketFolder()!, paths = [0, 1, 2].map((i) => `${folder}/${i}`);
    for (const own of await sums(paths, paths, false)) assertEquals(own.at(-1), { end: "finished" });
    assertEquals(await exists(folder), false);
  },
});

Deno.test({
  name: "ranks of several hosts meet on TCP, and so does one that may have no socket",
  ignore: Deno.build.os === "windows",
  async fn() {
    const [here, there] = [socketFolder()!, socketFolder()!], paths = [`${here}/0`, `${here}/1`, `${there}/0`];
    for (const own of await sums([...paths, `${here}/3`], paths, true)) assertEquals(own.at(-1), { end: "finished" });
    assertEquals([await exists(here), await exists(there)], [false, false]);
  },
});

for (
  const [what, signal, expected] of [
    ["is killed", "SIGKILL", "ank 2 is gone"],
    ["freezes", "SIGSTOP", "rank 2 does not answer, its last was all-reduce #"],
  ] as const
) {
  Deno.test(`when a rank ${what} the others say so and end`, async () => {
    const lines = await processes(3, 1_000_000, (children) => children.at(-1)!.kill(signal));
    for (const own of lines) assertStringIncludes(own.at(-1)!.end!, expected);
  });
}
