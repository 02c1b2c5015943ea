/** What the tests of this folder share: tiny records, micro-batches and trainers. */
import { assertEquals } from "@std/assert";
import type { Backend } from "../backend/backend.ts";
import { resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import type { MicroBatch } from "../data/mod.ts";
import { namedStream } from "../nn/random.ts";
import type { World } from "../parallel/world.ts";
import { initializeOptimizer, initializeTrainer } from "./initialize.ts";
import { initializeModel } from "./model.ts";
import type { Trainer } from "./trainer.ts";
import { readHeld } from "./whole.ts";

type Section = Record<string, unknown>;

/** A tiny model's record; sections given replace fields of it, and other values stand as they are. */
export function tinyRecord(
  changes: Record<string, Section | string | boolean> = {},
  options: { readonly worldSize?: number } = {},
): ResolvedConfig {
  const { model_type = "INTERNLM2", ...sections } = changes as Record<string, Section> & { model_type?: string };
  const defaults: Record<string, Section> = {
    model: {
      num_layers: 2,
      hidden_size: 12,
      num_attention_heads: 3,
      num_kv_attention_heads: 1,
      vocab_size: 17,
      mlp_ratio: 1.5,
      multiple_of: 3,
      embed_grad_scale: 1,
    },
    data: { seq_len: 9, micro_bsz: 1, micro_num: 2, total_steps: 10 },
    adam: { lr: 1e-2 },
    ckpt: { enable_save_ckpt: false },
  };
  const names = new Set([...Object.keys(defaults), ...Object.keys(sections)]);
  return resolveConfig({
    model_type,
    ...Object.fromEntries([...names].map((name) => [
      name,
      typeof sections[name] === "boolean" ? sections[name] : { ...defaults[name], ...sections[name] },
    ])),
  }, options);
}

/** A row of drawn tokens in segments of the given lengths; the last of each, and every `ignored`-th, has no label. */
export function drawnMicroBatch(
  key: string,
  lengths: readonly number[],
  { vocab = 17, ignored = Infinity }: { vocab?: number; ignored?: number } = {},
): MicroBatch {
  const next = namedStream(1, key), total = lengths.reduce((sum, length) => sum + length, 0);
  const tokens = Uint32Array.from({ length: total + 1 }, () => next() % vocab);
  const perToken = (of: (start: number, end: number, i: number) => number) => {
    let start = 0;
    return lengths.flatMap((length) => {
      const values = Array.from({ length }, (_, i) => of(start, start + length, i));
      start += length;
      return values;
    });
  };
  return {
    inputIds: tokens.slice(0, total),
    labels: Int32Array.from(
      perToken((start, end, i) => start + i + 1 === end || (i + 1) % ignored === 0 ? -100 : tokens[start + i + 1]),
    ),
    positions: Uint32Array.from(perToken((_, __, i) => i)),
    segmentStart: Uint32Array.from(perToken((start) => start)),
    segmentEnd: Uint32Array.from(perToken((_, end) => end)),
    typeIds: new Uint32Array(total),
    segments: lengths.length,
    longestSegment: Math.max(...lengths),
  };
}

export async function openTrainer(config: ResolvedConfig, backend: Backend, world?: World): Promise<Trainer> {
  const model = await initializeModel(config, { backend, ...(world && { world }) });
  return initializeTrainer({ model, optimizer: await initializeOptimizer(model) });
}

/** One whole step. */
export async function takeStep(trainer: Trainer, microBatches: readonly MicroBatch[]) {
  trainer.zeroGrad();
  const schedule = await trainer.executeSchedule({ microBatches: [...microBatches] });
  return { ...schedule, ...(await trainer.step()) };
}

/** All tensors of a kind, by name; all ranks that divide the optimizer's state must ask. */
export async function tensorsOf(
  { model }: Trainer,
  kind: "parameter" | "gradient" | "moment1" | "moment2" = "parameter",
): Promise<Map<string, Float32Array<ArrayBuffer>>> {
  const tensors = new Map<string, Float32Array<ArrayBuffer>>();
  for (const name of model.boxes.keys()) tensors.set(name, await readHeld(model, kind, name));
  return tensors;
}

/** A trainer that gets all of another's tensors and its state goes on with the same bits. */
export async function assertTakesOver(other: Trainer, one: Trainer, batch: readonly MicroBatch[]): Promise<void> {
  for (const kind of ["parameter", "moment1", "moment2"] as const) {
    for (const [tensor, values] of await tensorsOf(one, kind)) {
      other.model.program.writeParameter(kind, tensor, values);
    }
  }
  other.loadState(JSON.parse(JSON.stringify(one.state())));
  assertEquals(await takeStep(other, batch), await takeStep(one, batch));
  assertEquals(await tensorsOf(other), await tensorsOf(one));
  assertEquals(other.state(), one.state());
}
