/** A streaming run killed at random: it trains on every document exactly once an epoch, as if nothing had been. */
import { assert, assertEquals } from "@std/assert";
import { openCheckpoint } from "../src/checkpoint/mod.ts";
import { createTrainLoader, type DataPosition, loadTokenizer } from "../src/data/mod.ts";
import { trainTokenizer } from "../src/data/tokenize.ts";
import { assertNoStackTrace, curve, inFolder, rankOf, tinyRecord } from "./processes.ts";
import { random } from "./random.ts";
import { undisturbed } from "./undisturbed.ts";

const totalSteps = 100, seq_len = 32;

/** 150 numbered documents in files of three kinds, none longer than a row. */
async function makeStream(folder: string) {
  const texts = Array.from({ length: 150 }, (_, i) => `<${i}>${" the sea".repeat(1 + i % 5)}`);
  Deno.mkdirSync(`${folder}/text`);
  const lines = (from: number, to: number) =>
    texts.slice(from, to).map((text) => JSON.stringify({ text }) + "\n").join("");
  Deno.writeTextFileSync(`${folder}/text/a.jsonl`, lines(0, 60));
  Deno.writeTextFileSync(`${folder}/text/b.jsonl`, lines(60, 90));
  Deno.writeTextFileSync(`${folder}/text/c.txt`, texts.slice(90).join("\n\n"));
  const tokenizer = `${folder}/tokenizer.json`;
  await trainTokenizer({ inputs: [`${folder}/text`], vocabSize: 300, path: tokenizer });
  return { texts, tokenizer };
}

Deno.test("train() on a stream trains on every document once an epoch, whatever ten SIGKILLs interrupt", () =>
  inFolder(async (folder, processes) => {
    const { texts, tokenizer } = await makeStream(folder);
    const data = {
      type: "streaming",
      train_folder: `${folder}/text`,
      tokenizer_path: tokenizer,
      seq_len,
      micro_bsz: 2,
      micro_num: 2,
      pack_sample_into_one: true,
    };
    const config = tinyRecord(folder, {
      model: { vocab_size: 300 },
      data: { ...data, total_steps: totalSteps },
      ckpt: { checkpoint_every: 7 },
      runtime: { max_restarts: 50 },
    });
    const calm = await undisturbed(config, 1);

    const run = processes.start(["train", "--config", config, "--backend", "cpu", "--json"], { folder });
    const next = random(6), steps = () => run.out.text.split("\n").length - 1;
    for (let kill = 0; kill < 10; kill++) {
      const pid = await rankOf(folder, kill + 1), base = steps(), wait = 1 + Math.floor(next() * 9);
      await run.out.until(() => steps() >= base + wait, `${wait} steps`);
      await new Promise((resolve) => setTimeout(resolve, next() * 20));
      assert(await processes.signal("KILL", pid), run.err.text);
    }
    const ended = await run.ended;
    assertEquals(ended.code, 0, ended.err);
    assertNoStackTrace(ended);
    assertEquals(ended.err.match(/^ALERT Rank 0 was killed by SIGKILL/gm)?.length, 10, ended.err);

    // The same losses to the last bit are the same tokens in the same order, and both end at the same place.
    assertEquals(curve(folder).length, totalSteps);
    assertEquals(curve(folder), calm.curve);
    using saved = openCheckpoint(`${folder}/checkpoints/${totalSteps}`);
    const { data: position } = saved.manifest.state as unknown as { data: DataPosition };
    assertEquals(position, calm.position);

    // What the history of that checkpoint holds: every document once an epoch.
    const loader = createTrainLoader(data, { dataRank: 0, dataWorldSize: 1 }),
      { bosId, eosId, decode } = loadTokenizer(tokenizer);
    let ids: number[] = [];
    const trained: string[] = [];
    for (let step = 0; step < totalSteps; step++) {
      for (const { inputIds } of (await loader.next()).microBatches) {
        for (const id of inputIds) {
          if (id === bosId) ids = [];
          else if (id === eosId) trained.push(decode(ids));
          else ids.push(id);
        }
      }
    }
    assertEquals(loader.state(), position);
    loader.close();
    assert(position.epoch >= 2, `${position.epoch} epochs`);
    for (let epoch = 0; epoch < position.epoch; epoch++) {
      assertEquals(trained.slice(epoch * texts.length, (epoch + 1) * texts.length).sort(), texts.toSorted());
    }
  }));
