import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { openNullBackend } from "../backend/null/backend.ts";
import { openBackend } from "../backend/open.ts";
import type { ResolvedConfig } from "../config/mod.ts";
import { singleRank } from "../parallel/mesh.ts";
import { runMesh } from "../parallel/run_mesh.ts";
import { openTrainer, tinyRecord } from "./_testing.ts";
import { adviceFor, remedies, roomOf } from "./fit.ts";
import { planModel } from "./model.ts";

type Changes = Record<string, Record<string, unknown>>;

const record = (changes: Changes = {}, worldSize = 1) =>
  tinyRecord({
    ...changes,
    model: { num_layers: 4, hidden_size: 24, vocab_size: 64, ...changes.model },
    data: { seq_len: 32, micro_bsz: 4, micro_num: 1, ...changes.data },
  }, { worldSize });

const { traits } = openNullBackend(); // holds nothing
const planned = (config: ResolvedConfig) => planModel(config, traits, singleRank).memory.total;

Deno.test("remedies() offers what alone is enough, as little of it as that, and what is promised is what it takes", () => {
  const config = record(), total = planned(config);
  const half = planned(record({ model: { checkpoint: 0.5 } })), less = planned(record({ model: { checkpoint: 0.25 } }));
  assert(half < less && less < total);
  assertEquals(remedies(config, { bytes: less, planned }).remedies[0]!.settings, ["model.checkpoint=0.25"]);
  const { fits, remedies: found } = remedies(config, { bytes: half, planned });
  assertEquals(fits, true);
  assertEquals(found[0], { settings: ["model.checkpoint=0.5"], bytes: half });
  assertEquals(found.at(-1)!.settings, ["data.micro_bsz=2", "data.micro_num=2"]);
  for (const { settings, bytes } of found) {
    const changes: Changes = {};
    for (const setting of settings) {
      const [, section, field, value] = /^(\w+)\.(\w+)=(.+)$/.exec(setting)!;
      (changes[section!] ??= {})[field!] = Number.isNaN(Number(value)) ? value : Number(value);
    }
    assertEquals(planned(record(changes)), bytes, settings.join());
    assert(bytes <= half);
  }
});

Deno.test("remedies() puts settings together where none is enough, and says so where all are not", () => {
  const config = record();
  const least = planned(record({ model: { checkpoint: 1, dtype: "bfloat16" }, data: { micro_bsz: 1, micro_num: 4 } }));
  const settings = ["model.checkpoint=1", "model.dtype=bfloat16", "data.micro_bsz=1", "data.micro_num=4"];
  const found = remedies(config, { bytes: least, planned });
  assertEquals(found, { fits: true, remedies: [{ settings, bytes: least }] });
  assertEquals(remedies(config, { bytes: least - 1, planned }).fits, false);
  const sentence = adviceFor(config, { bytes: least - 1, planned });
  assertStringIncludes(sentence, "even with model.checkpoint=1 and model.dtype=bfloat16");
  assertStringIncludes(sentence, "more ranks (parallel.tensor, parallel.pipeline) are needed");
});

Deno.test("remedies() offers to divide the optimizer's state where replicas keep it whole", () => {
  const config = record({ parallel: { zero1: { size: 1 } } }, 4);
  const onFour = (config: ResolvedConfig) =>
    planModel(config, traits, runMesh(config, { rank: 0, world: 4 })).memory.total;
  const found = remedies(config, { bytes: onFour(config) - 1, planned: onFour, replicas: 4 });
  const divided = found.remedies.find(({ settings }) => settings[0] === "parallel.zero1.size=-1");
  assertEquals(divided?.bytes, onFour(record({ parallel: { zero1: { size: -1 } } }, 4)));
});

Deno.test("remedies() offers stages on more ranks, the least that are enough, with what each rank then takes", () => {
  const onMore = (config: ResolvedConfig, place: { rank: number; world: number }) =>
    planModel(config, traits, runMesh(config, place)).memory.total;
  const more = { world: 1, planned: onMore }, config = record({ data: { micro_num: 2 } });
  const stages = (count: number) => record({ data: { micro_num: 2 }, parallel: { pipeline: { size: count } } }, count);
  const [two, four] = [2, 4].map((world) =>
    Math.max(...Array.from({ length: world }, (_, rank) => onMore(stages(world), { rank, world })))
  ) as [number, number];
  assert(four < two && two < planned(config));
  const offer = (bytes: number) => remedies(config, { bytes, planned, more }).remedies.find(({ ranks }) => ranks);
  assertEquals(offer(two), { settings: ["parallel.pipeline.size=2"], ranks: 2, bytes: two });
  assertEquals(offer(two - 1), { settings: ["parallel.pipeline.size=4"], ranks: 4, bytes: four });
  assertEquals(offer(100), undefined);
  assertStringIncludes(adviceFor(config, { bytes: two, planned, more }), "parallel.pipeline.size=2 on 2 ranks (takes ");
});

Deno.test("initializeModel() refuses what does not fit before anything is allocated, with what would", async () => {
  using backend = await openBackend("cpu");
  const config = record({ runtime: { device_memory: "100KiB" } });
  const { message } = await assertRejects(() => openTrainer(config, backend), RangeError);
  assertStringIncludes(message, "100 KiB are there (runtime.device_memory)");
  assertStringIncludes(message, "would");
  assertEquals(backend.allocatedBytes, 0);
  using trainer = await openTrainer(record({ runtime: { device_memory: "1GiB" } }), backend);
  assertEquals(trainer.model.room, { bytes: 2 ** 30, from: "runtime.device_memory" });
});

Deno.test("roomOf() takes what is free where the device computes in the machine's memory, and knows nothing of GPUs", async () => {
  using cpu = await openBackend("cpu");
  const room = roomOf(record(), cpu);
  assertEquals(room?.from, "free on this machine");
  assert(room!.bytes > 0);
  const gpu = { name: "webgpu", traits: { ...cpu.traits, software: false } } as unknown as typeof cpu;
  assertEquals(roomOf(record(), gpu), undefined);
  assertEquals(roomOf(record({ runtime: { device_memory: 4096 } }), gpu)?.bytes, 4096);
});
