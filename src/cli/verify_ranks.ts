/**
 * `troupe verify --nproc N`: the same replay by N processes of this program, which meet as the ranks of a training do.
 * Rank 0 reports; all come to the same, or their collectives disagree.
 */
import type { Meeting } from "../../actors/communicator.ts";
import { Progress } from "../../actors/progress.ts";
import { createRuntime } from "../../actors/runtime/mod.ts";
import { listenControl } from "../comm/control.ts";
import { openRendezvous } from "../comm/transport/rendezvous.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { createWorld, type World } from "../parallel/world.ts";
import { joinRoot, meet } from "./rank.ts";
import { rankVariables } from "./rank_variables.ts";
import { hostSockets, rankEnvironment } from "./rank_process.ts";
import { selfCommand } from "./self.ts";

/** By environment: where the ranks meet, as JSON. Its presence makes a `verify` one of several ranks. */
const meetingVariable = "TROUPE_MEETING";

export const isOneOfSeveral = (): boolean => Deno.env.has(meetingVariable);

const hostname = "127.0.0.1";

/**
 * Starts the ranks and waits for all of them.
 *
 * @param args what `verify` was given: the ranks get the same
 * @returns the exit code: that of rank 0, or another's where one failed
 */
export async function verifyWithRanks(args: readonly string[], nproc: number): Promise<number> {
  const token = crypto.randomUUID(), fingerprint = "", timeoutMs = 120_000;
  await using control = listenControl({ hostname, port: 0, token, onValue: () => {} });
  const meetingPlace = openRendezvous({ hostname, token, world: nproc, fingerprint, timeoutMs });
  const meeting: Meeting = { hostname, port: meetingPlace.port, world: nproc, fingerprint, encrypt: false, timeoutMs };
  const sockets = hostSockets(nproc);
  const { command, args: own, env } = selfCommand(
    ["verify", ...args],
    sockets.allow({ read: true, env: true, net: [hostname], sys: ["hostname", "systemMemoryInfo", "statfs"] }),
  );
  const children = Array.from({ length: nproc }, (_, rank) =>
    new Deno.Command(command, {
      args: own,
      env: {
        ...env,
        ...rankEnvironment({
          rank,
          attempt: 1,
          localRank: rank,
          world: nproc,
          control: { hostname, port: control.port },
          token,
          address: hostname,
          sockets,
        }),
        [meetingVariable]: JSON.stringify(meeting),
      },
      stdin: "null",
      stdout: rank === 0 ? "inherit" : "null",
    }).spawn());
  const codes = await Promise.all(children.map(async (child) => {
    const { code, success } = await child.status;
    // The others would wait for it.
    if (!success) { for (const other of children) if (other !== child) end(other); }
    return code;
  }));
  await meetingPlace.close();
  return codes.find((code) => code !== 0 && code < 128) ?? codes.find((code) => code !== 0) ?? 0;
}

function end(child: Deno.ChildProcess): void {
  try {
    child.kill("SIGTERM");
  } catch (error) {
    if (!(error instanceof TypeError)) throw error; // it has ended
  }
}

export interface OneOfSeveral extends AsyncDisposable {
  readonly rank: number;
  readonly world: (config: ResolvedConfig) => Promise<World>;
}

/** In one of the processes: its place, and how it meets the others once the first record that fits is known. */
export function oneOfSeveral(): OneOfSeveral {
  const runtime = createRuntime({ log: () => {}, onDeadLetter: () => {} });
  const joined = joinRoot(runtime, new Progress()), rank = Number(Deno.env.get(rankVariables.rank));
  joined.catch(() => {}); // told by `world`
  const meeting = JSON.parse(Deno.env.get(meetingVariable)!) as Meeting;
  let met: ReturnType<typeof meet> | undefined;
  return {
    rank,
    async world(config) {
      const mesh = runMesh(config, { rank, world: meeting.world });
      return createWorld(mesh, await (met ??= meet(await joined, meeting)));
    },
    [Symbol.asyncDispose]: () => runtime.stop(),
  };
}
