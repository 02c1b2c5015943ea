/** Ranks in processes: what happens to the others when one is killed, or freezes. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { fileURLToPath } from "node:url";
import { hostname } from "./_testing.ts";
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
): Promise<Line[][]> {
  const meeting = openRendezvous({ hostname, token: "secret", world });
  const script = fileURLToPath(new URL("./_rank_testing.ts", import.meta.url));
  const children = Array.from({ length: world }, (_, rank) =>
    new Deno.Command(Deno.execPath(), {
      args: [
        "run",
        "--quiet",
        "--no-check",
        `--allow-net=${hostname}`,
        script,
        ...[rank, world, meeting.port, rounds].map(String),
      ],
      stdin: "null",
      stdout: "piped",
    }).spawn());
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
