/**
 * Accidents at random: ranks killed and frozen, the root killed, at any moment of one training of several ranks, whose
 * curve and last checkpoint must then be those of an undisturbed run, bit for bit.
 *
 *     deno task chaos --trials 50 [--nproc 3] [--seed 1]
 */
import { assert, assertEquals } from "@std/assert";
import {
  assertNoStackTrace,
  checkpointEntries,
  curve,
  inFolder,
  type Processes,
  rankOf,
  ranks,
  runFolders,
  type Started,
  tinyRecord,
  until,
} from "./processes.ts";

export interface ChaosOptions {
  /** Accidents. */
  readonly trials: number;
  readonly nproc: number;
  readonly seed: number;
  readonly say?: (line: string) => void;
}

/** The same numbers from 0 to 1 for the same seed (mulberry32). */
function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Of five accidents, three kill a rank, one freezes one and one kills the root; each five in an order of their own. */
const kinds = ["kill a rank", "kill a rank", "kill a rank", "freeze a rank", "kill the root"] as const;

export function chaos({ trials, nproc, seed, say = () => {} }: ChaosOptions): Promise<void> {
  const next = random(seed), totalSteps = 8 + 5 * trials;
  const pick = (count: number) => Math.floor(next() * count);
  return inFolder(async (parent, processes) => {
    const [calm, rough] = ["calm", "rough"].map((name) => {
      Deno.mkdirSync(`${parent}/${name}`);
      return `${parent}/${name}`;
    }) as [string, string];
    const start = (folder: string) => {
      const record = tinyRecord(folder, {
        data: { total_steps: totalSteps },
        ckpt: { checkpoint_every: 3, keep_last: 2 },
        hybrid_zero_optimizer: { clip_grad_norm: 1 },
        runtime: { max_restarts: 10 * trials },
      });
      const words = ["train", "--config", record, "--backend", "cpu", "--json", "--nproc", String(nproc)];
      return processes.start(words, { folder });
    };
    const undisturbed = await start(calm).ended;
    assertEquals(undisturbed.code, 0, undisturbed.err);
    assertNoStackTrace(undisturbed);

    let run = start(rough), attempt = 0, pool: (typeof kinds)[number][] = [];
    const told: string[] = [];
    for (let trial = 1; trial <= trials; trial++) {
      if (pool.length === 0) pool = [...kinds];
      const [kind] = pool.splice(pick(pool.length), 1) as [(typeof kinds)[number]];
      const victim = pick(nproc), steps = pick(5);
      const pid = await rankOf(rough, ++attempt, victim);
      await anyMoment(run, steps, next);
      const at = stepsTold(rough);
      told.push(
        `${trial}/${trials} after step ${at}: ${
          kind === "kill the root" ? kind : kind.replace("a rank", `rank ${victim}`)
        }`,
      );
      say(told.at(-1)!);
      if (kind === "kill the root") {
        await killRoot(processes, rough);
        assert((await run.ended).code !== 0);
        const { root } = ranks(rough)!;
        [run, attempt] = [start(rough), 0];
        await until(() => ![undefined, root].includes(ranks(rough)?.root), "another root");
      } else assert(await processes.signal(kind === "freeze a rank" ? "STOP" : "KILL", pid), run.err.text);
    }
    const ended = await run.ended, story = `${told.join("\n")}\n${ended.err}`;
    assertEquals(ended.code, 0, story);
    assertNoStackTrace(ended);
    assertEquals(curve(calm).length, totalSteps);
    assertEquals(curve(rough), curve(calm), story);
    assertEquals(checkpointEntries(rough, totalSteps), checkpointEntries(calm, totalSteps), story);
    for (const { pid } of ranks(rough)!.ranks) assert(!await processes.alive(pid), "no rank is left");
    say(`After ${trials} accidents the curve of ${totalSteps} steps and the weights are those of an undisturbed run`);
  });
}

/** Steps in the records of the newest run. */
function stepsTold(folder: string): number {
  try {
    return Deno.readTextFileSync(`${runFolders(folder).at(-1)}/metrics.jsonl`).split("\n").length - 1;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return 0; // none yet
    throw error;
  }
}

/** Lets some steps pass, then a moment; without any step, the ranks may still be starting. */
async function anyMoment(run: Started, steps: number, next: () => number): Promise<void> {
  const lines = () => run.out.text.split("\n").length - 1, base = lines();
  if (steps > 0) await run.out.until(() => lines() >= base + steps, `${steps} steps`);
  await new Promise((resolve) => setTimeout(resolve, next() * (steps > 0 ? 60 : 1500)));
}

async function killRoot(processes: Processes, folder: string): Promise<void> {
  const { root, ranks: members } = ranks(folder)!;
  assert(await processes.signal("KILL", root));
  for (const { pid } of members) await until(async () => !await processes.alive(pid), "the ranks' end");
}

if (import.meta.main) {
  const given = new Map(Deno.args.map((word, i) => [word, Number(Deno.args[i + 1])]));
  const number = (name: string, standard: number) => {
    const value = given.get(`--${name}`) ?? standard;
    if (Number.isSafeInteger(value) && value >= 1) return value;
    console.error(`chaos: --${name} must be a whole number from 1`);
    Deno.exit(2);
  };
  const [trials, nproc, seed] = [number("trials", 5), number("nproc", 3), number("seed", 1)];
  await chaos({ trials, nproc, seed, say: (line) => console.log(line) });
}
