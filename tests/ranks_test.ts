/** Several ranks, a process each: what accidents to one mean for all, and for the run's records: nothing. */
import { assert, assertAlmostEquals, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import type { BlackBoxContent } from "../src/observe/black_box.ts";
import { goldenPath } from "./golden_dir.ts";
import {
  assertNoStackTrace,
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
import { undisturbed } from "./undisturbed.ts";

const totalSteps = 16;

type Section = Record<string, unknown>;

const recordOf = (folder: string, changes: Record<string, Section> = {}) =>
  tinyRecord(folder, {
    ...changes,
    model: { hidden_size: 32 },
    data: { total_steps: totalSteps, micro_num: 2, ...changes.data },
    ckpt: { checkpoint_every: 4 },
    hybrid_zero_optimizer: { clip_grad_norm: 1 },
    runtime: { max_restarts: 20, ...changes.runtime },
  });

function train(folder: string, processes: Processes, nproc: number, changes: Record<string, Section> = {}): Started {
  const record = recordOf(folder, changes);
  return processes.start(
    ["train", "--config", record, "--backend", "cpu", "--json", "--nproc", String(nproc)],
    { folder },
  );
}

/** Whole lines on standard output: steps told, those done twice counted twice. */
const steps = ({ out }: Started) => out.text.split("\n").length - 1;

const more = async (run: Started, count: number) => {
  const base = steps(run);
  await run.out.until(() => steps(run) >= base + count, `${count} steps`);
};

/** Whether, when all ranks ended the last time, rank 2 waited for rank 1 to hand its turn on. */
function wasInTurn(folder: string): boolean {
  const box: BlackBoxContent = JSON.parse(Deno.readTextFileSync(`${runFolders(folder).at(-1)}/blackbox.json`));
  return box.ranks.find(({ rank }) => rank === 2)!.records
    .some(({ text }) => /^receive of device with place 1, .*: failed$/.test(text));
}

Deno.test("a rank that freezes, or is killed, in its turn on what ranks share is named and replaced, and the curve does not tell", () =>
  inFolder(async (rough, processes) => {
    const data = { micro_num: 24, total_steps: 4 };
    const { curve: calm } = await undisturbed(recordOf(rough, { data }), 3);
    const run = train(rough, processes, 3, { data, runtime: { gpu_turns: "always" } });
    let attempt = 0, caught = false;
    // Soon after a step the first rank has its turn, or the second, which gets it all the same and does not hand it on: with
    // many micro-batches most of a step is that.
    const strike = async (signal: "STOP" | "KILL") => {
      const pid = await rankOf(rough, ++attempt, 1);
      await more(run, 1);
      assert(await processes.signal(signal, pid), `rank 1 was there:\n${run.err.text}`);
      await rankOf(rough, attempt + 1, 1);
    };
    for (let tries = 0; !caught && tries < 12; tries++, caught = wasInTurn(rough)) await strike("STOP");
    assert(caught, `rank 1 was stopped in its turn:\n${run.err.text}`);
    await strike("KILL"); // the root hears of it at once, and not first where rank 2 waited
    const ended = await run.ended;
    assertEquals(ended.code, 0, ended.err);
    assertNoStackTrace(ended);
    assertStringIncludes(ended.err, "planned on each of 3 ranks");
    assertMatch(
      ended.err,
      /^ALERT Ranks lost each other .*: rank 1 does not answer, its last was .*; starting all ranks again/m,
    );
    assertMatch(ended.err, /^ALERT Rank 1 was killed by SIGKILL .*; starting all ranks again \(restart \d+, of 20/m);
    assertStringIncludes(ended.err, "All 3 ranks are back and go on from ");
    assertEquals(curve(rough), calm);
  }));

Deno.test("when the root is killed its ranks are gone, and the next start goes on, encrypted as well", () =>
  inFolder(async (rough, processes) => {
    const { curve: calm } = await undisturbed(recordOf(rough), 2);
    const first = train(rough, processes, 2, { runtime: { encrypt: true } });
    await more(first, 7);
    const { root, ranks: members } = ranks(rough)!;
    assert(await processes.signal("KILL", root));
    // One after the other: they are asked for through one shell.
    for (const { pid } of members) await until(async () => !await processes.alive(pid), "the ranks' end");
    assert((await first.ended).code !== 0);
    const second = await train(rough, processes, 2, { runtime: { encrypt: true } }).ended;
    assertEquals(second.code, 0, second.err);
    assertMatch(second.err, /resumed from step \d+/);
    assertEquals(curve(rough), calm);
  }));

Deno.test("4, 3, 2 and 4 ranks across restarts, however they divide the state, train on the same batches as 4 ranks undisturbed", () =>
  inFolder(async (rough, processes) => {
    const changes = (micro_num: number, size: number) => ({ data: { micro_num }, parallel: { zero1: { size } } });
    const tokens: unknown[] = [],
      consumed = (step: Record<string, unknown>) => [step.num_consumed_tokens, step["tokens/en"]];
    const told = (step: Record<string, unknown>) => void tokens.push(consumed(step));
    const { curve: expected } = await undisturbed(recordOf(rough, changes(3, -1)), 4, { told });
    // Two ranks are told of the batch in numbers of their own: 6 × 2 are the 3 × 4 rows that it has.
    for (const [nproc, micro_num, size] of [[4, 3, -1], [3, 3, 1], [2, 6, -1]] as const) {
      const run = train(rough, processes, nproc, changes(micro_num, size));
      await more(run, 3);
      assert(await processes.signal("TERM", ranks(rough)!.root));
      const ended = await run.ended;
      assertEquals(ended.code, 0, ended.err);
      assertMatch(ended.err, /Stopped after step \d+\. The same command goes on from there/);
      if (nproc === 4) continue;
      assertStringIncludes(ended.err, "stays as it began: 12 rows (data.micro_num 3 on 4 data-parallel ranks)");
      assertStringIncludes(ended.err, `on ${nproc} now, each takes ${12 / nproc}`);
    }
    const last = await train(rough, processes, 4, changes(3, 1)).ended;
    assertEquals(last.code, 0, last.err);
    const actual = curve(rough);
    assertEquals(actual.map(({ step }) => step), expected.map(({ step }) => step));
    expected.forEach(({ loss, step }, index) => assertAlmostEquals(actual[index]!.loss, loss, 2e-4, `step ${step}`));
    const lines = Deno.readTextFileSync(`${runFolders(rough).at(-1)}/metrics.jsonl`).trim().split("\n");
    assertEquals(lines.map((line) => consumed(JSON.parse(line))), tokens, "the same tokens in the same steps");
  }));

Deno.test("verify --nproc 2 replays reference trainings on two processes, and refuses what does not fit two or no model", () =>
  inFolder(async (folder, processes) => {
    const reference = goldenPath("hf", "llama_gqa"), flat = `${folder}/flat`;
    Deno.mkdirSync(flat);
    for (const file of ["curve.json", "model.safetensors"]) {
      Deno.copyFileSync(`${reference}/${file}`, `${flat}/${file}`);
    }
    const config = JSON.parse(Deno.readTextFileSync(`${reference}/config.json`));
    Deno.writeTextFileSync(`${flat}/config.json`, JSON.stringify({ ...config, num_hidden_layers: 0 }));
    const verify = (...args: string[]) =>
      processes.run(["verify", "--backend", "cpu", "--nproc", "2", ...args], { folder });
    const { code, out, err } = await verify(
      ...[flat, reference, "--json", "--set", "hybrid_zero_optimizer.reduce_bucket_size=10000"],
    );
    assertEquals(code, 2, err);
    const [first, second] = out.trim().split("\n").map((line) => JSON.parse(line));
    assertEquals(first.case, "flat");
    assertMatch(first.refused, /model\.num_layers: 0/);
    assertEquals([second.case, second.nproc, second.steps, second.pass], ["llama_gqa", 2, 20, true]);
    const refused = await verify(reference, "--set", "parallel.zero1.size=3");
    assertEquals(refused.code, 2);
    assertMatch(refused.err, /parallel\.zero1\.size: 3 does not divide the 2 ranks/);
    assertNoStackTrace(refused);
  }));
