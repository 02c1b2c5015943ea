/**
 * Accidents at random: ranks killed and frozen, supervisors killed and frozen, the link between two hosts cut, at any moment
 * of one training, whose curve and last checkpoint must then be those of an undisturbed run, bit for bit.
 *
 *     ./troupe chaos --trials 50 [--nproc 3] [--seed 1]
 */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { ArgumentError, createParser, type ParsedArguments } from "../src/cli/parser.ts";
import {
  assertNoStackTrace,
  checkpointEntries,
  curve,
  inFolder,
  rankOf,
  ranks,
  runFolders,
  type Started,
  tinyRecord,
  until,
} from "./processes.ts";
import { random } from "./random.ts";
import { namespaces, noNamespaces, relayed } from "./two_hosts.ts";
import { undisturbed } from "./undisturbed.ts";

export interface ChaosOptions {
  /** Accidents. */
  readonly trials: number;
  readonly nproc: number;
  readonly seed: number;
  readonly say?: (line: string) => void;
}

const kinds = [
  "kill a rank",
  "kill a rank",
  "freeze a rank",
  "kill the root",
  "freeze the root",
  "kill a host's supervisor",
  "freeze a host's supervisor",
  "cut the link",
] as const;
type Kind = (typeof kinds)[number];

/** The root's host has all ranks but the last, which is the other host's. */
export function chaos({ trials, nproc, seed, say = () => {} }: ChaosOptions): Promise<void> {
  const next = random(seed), totalSteps = 8 + 5 * trials;
  const pick = (count: number) => Math.floor(next() * count);
  return inFolder(async (rough, processes) => {
    const record = tinyRecord(rough, {
      data: { total_steps: totalSteps },
      ckpt: { checkpoint_every: 3, keep_last: 2 },
      hybrid_zero_optimizer: { clip_grad_norm: 1 },
      runtime: { max_restarts: 10 * trials },
    });
    const command = (...more: string[]) => ["train", "--config", record, "--backend", "cpu", "--json", ...more];
    const calm = await undisturbed(record, nproc);

    const reason = noNamespaces();
    if (reason) say(`links are cut between the hosts' supervisors only, by a relay, as ${reason}`);
    await using hosts = reason ? relayed(processes) : namespaces(processes);
    const startRoot = () =>
      hosts.root(command("--world_size", String(nproc), "--nproc", String(nproc - 1)), { folder: rough });
    const startMember = () => hosts.member(command(), { folder: rough });
    let run = startRoot(), member = startMember(), attempt = 0, pool: Kind[] = [];
    const told: string[] = [];
    /** The member has ended by itself, with a sentence. */
    const left = async (sentence: RegExp) => {
      const ended = await member.ended;
      assertEquals(ended.code, 1, ended.err);
      assertMatch(ended.err, sentence);
      assertNoStackTrace(ended);
    };
    const gone = (pid: number) => until(async () => !await processes.alive(pid), `the end of process ${pid}`);
    const signal = async (name: "KILL" | "STOP" | "CONT", pid: number) =>
      assert(await processes.signal(name, pid), run.err.text);

    const accidents: Record<Kind, (pid: number) => Promise<void>> = {
      "kill a rank": (pid) => signal("KILL", pid),
      "freeze a rank": (pid) => signal("STOP", pid),
      async "kill the root"() {
        const { root, ranks: members } = ranks(rough)!;
        await signal("KILL", root);
        for (const { pid } of members) await gone(pid);
        assert((await run.ended).code !== 0);
        await left(/The root at .* is gone/);
        [run, member, attempt] = [startRoot(), startMember(), 0];
        await until(() => ![undefined, root].includes(ranks(rough)?.root), "another root");
      },
      async "freeze the root"() {
        const { root } = ranks(rough)!;
        await signal("STOP", root);
        await left(/The root at .* was not heard of for 6 s/);
        await signal("CONT", root);
        member = startMember();
      },
      async "kill a host's supervisor"() {
        const theirs = await rankOf(rough, attempt, nproc - 1);
        await signal("KILL", await processes.programOf(member));
        await member.ended;
        await gone(theirs);
        member = startMember();
      },
      async "freeze a host's supervisor"() {
        const supervisor = await processes.programOf(member), theirs = await rankOf(rough, attempt, nproc - 1);
        const missed = () => run.err.text.split("was not heard of for 6 s").length, before = missed();
        await signal("STOP", supervisor);
        await run.err.until(() => missed() > before, "word of the host that is silent");
        await gone(theirs);
        await signal("CONT", supervisor);
        await left(/The root at .* is gone/);
        member = startMember();
      },
      async "cut the link"() {
        const missed = () => run.err.text.split("was not heard of for 6 s").length, before = missed();
        hosts.cut();
        await Promise.all([
          left(/The root at .* was not heard of for 6 s/),
          run.err.until(() => missed() > before, "word of the host that is silent"),
        ]);
        hosts.mend();
        member = startMember();
      },
    };
    for (let trial = 1; trial <= trials; trial++) {
      if (pool.length === 0) pool = [...kinds];
      const [kind] = pool.splice(pick(pool.length), 1) as [Kind];
      const victim = pick(nproc), steps = pick(5), pid = await rankOf(rough, ++attempt, victim);
      await anyMoment(run, steps, next);
      const what = `${trial}/${trials} after step ${stepsTold(rough)}: ${kind.replace("a rank", `rank ${victim}`)}`;
      told.push(what);
      say(what);
      await accidents[kind](pid);
    }
    const [ended, its] = await Promise.all([run.ended, member.ended]);
    const story = `${told.join("\n")}\n${ended.err}\n${its.err}`;
    assertEquals([ended.code, its.code], [0, 0], story);
    for (const each of [ended, its]) assertNoStackTrace(each);
    assertEquals(calm.curve.length, totalSteps);
    assertEquals(curve(rough), calm.curve, story);
    assertEquals(checkpointEntries(rough, totalSteps), calm.entries, story);
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

if (import.meta.main) {
  const parser = createParser<ParsedArguments & Required<Omit<ChaosOptions, "say">>>()
    .addArgument("--trials", { type: "int", default: 5, help: "Accidents" })
    .addArgument("--nproc", { type: "int", default: 3, help: "Ranks in all, the last of them on a second host" })
    .addArgument("--seed", { type: "int", default: 1, help: "Seed of their kinds and moments" });
  try {
    const { trials, nproc, seed, help } = parser.parse(Deno.args);
    if (help) {
      console.log(parser.help("chaos", "kill, freeze and cut off parts of a run, and compare its curve"));
      Deno.exit();
    }
    for (const [name, value, least] of [["trials", trials, 1], ["nproc", nproc, 2], ["seed", seed, 0]] as const) {
      if (value < least) throw new ArgumentError(`--${name}: ${value} is not a whole number from ${least}`);
    }
    await chaos({ trials, nproc, seed, say: (line) => console.log(line) });
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    console.error(`chaos: ${error.message}`);
    Deno.exit(2);
  }
}
