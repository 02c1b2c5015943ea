/**
 * Whether a process that trains grows: a small model, or one of the benchmark's, is trained for as long as asked, and every ten seconds one JSON line
 * tells what the process holds, the last one by how much it grew and what a step made of that by count.
 *
 *     TROUPE_WEBGPU=dawn deno run --allow-all --v8-flags=--expose-gc tests/bench/memory_over_time.ts
 *       [--seconds=200] [--pace=20] [--type=float16] [--model=124M] [--bounds_checks]
 *
 * `--pace`: milliseconds from one step to the next, at least. With `--expose-gc` garbage is collected before each line, so
 * that what is left is held by someone. The growth is told from a third of the time on, as caches fill before, and of the
 * last 100 seconds.
 */
import { openWebGpuBackend } from "../../src/backend/webgpu/backend.ts";
import { endWithoutTeardown } from "../../src/backend/webgpu/dawn.ts";
import { defaultProvider } from "../../src/backend/webgpu/provider.ts";
import { type BenchType, modelSettings, typeSettings } from "../../src/cli/bench_models.ts";
import { loadConfig, resolveConfig } from "../../src/config/mod.ts";
import { createTrainLoader } from "../../src/data/mod.ts";
import { Session } from "../../src/train/session.ts";
import { bytesOfObject, bytesOfPoll, countObjects } from "./dawn_objects.ts";

const option = (name: string, fallback: string) =>
  Deno.args.find((word) => word.startsWith(`--${name}=`))?.slice(name.length + 3) ?? fallback;
const seconds = Number(option("seconds", "200")), pace = Number(option("pace", "20")), type = option("type", "float16");
const boundsChecks = Deno.args.includes("--bounds_checks");
const every = Math.min(10, seconds / 6);

if (defaultProvider() === "dawn") endWithoutTeardown();
const counts = await countObjects(defaultProvider());
const backend = await openWebGpuBackend(defaultProvider(), { boundsChecks });
const half = type === "float16" && !backend.traits.features.shaderF16;
if (half) console.error(`${backend.traits.description} has no f16: float32 instead`);
const small = [
  ...modelSettings("124M", { batch: 2, tokens: 128 }),
  "model.num_layers=2",
  "model.hidden_size=128",
  "model.num_attention_heads=2",
  "model.num_kv_attention_heads=2",
  "model.vocab_size=1024",
];
const model = option("model", "");
const set = [
  ...(model ? modelSettings(model as "124M", { batch: 4, tokens: 1024 }) : small),
  ...typeSettings(half ? "float32" : type as BenchType),
  "data.total_steps=1000000",
];
const config = resolveConfig(await loadConfig("configs/demo.yaml", { set }), {});
const session = await Session.open(config, { backend });
const loader = createTrainLoader(config.data, { dataRank: 0, dataWorldSize: 1 });

interface Sample {
  readonly seconds: number;
  readonly steps: number;
  readonly rss: number;
  readonly heapUsed: number;
  /** Of `rss`, what is not the space of JavaScript's heap. */
  readonly besideHeap: number;
  readonly objects: number;
  readonly polls: number;
}
const samples: Sample[] = [];
const started = performance.now(), elapsed = () => (performance.now() - started) / 1000;
let steps = 0, loss = 0;
for (let due = 0; elapsed() < seconds;) {
  const begun = performance.now();
  loss = (await session.step(await loader.next())).loss;
  steps++;
  if (elapsed() >= due) {
    (globalThis as { gc?: () => void }).gc?.();
    const { rss, heapUsed, heapTotal, external } = Deno.memoryUsage();
    samples.push({ seconds: elapsed(), steps, rss, heapUsed, besideHeap: rss - heapTotal, ...counts });
    const line = { seconds: Math.round(elapsed()), steps, rss, heapUsed, heapTotal, external, loss };
    console.log(JSON.stringify({ bench: "memory over time", ...line }));
    due += every;
  }
  const left = pace - (performance.now() - begun);
  if (left > 0) await new Promise((resolve) => setTimeout(resolve, left));
}

/** Growth by the least squares line, of `of` for each of `by`. */
function slope(points: readonly Sample[], by: "seconds" | "steps", of: "rss" | "heapUsed" | "besideHeap"): number {
  const mean = (key: keyof Sample) => points.reduce((sum, point) => sum + point[key], 0) / points.length;
  const x = mean(by), y = mean(of);
  return points.reduce((sum, point) => sum + (point[by] - x) * (point[of] - y), 0) /
    points.reduce((sum, point) => sum + (point[by] - x) ** 2, 0);
}
const settled = samples.filter((sample) => sample.seconds >= seconds / 3);
const last = samples.filter((sample) => sample.seconds >= seconds - 100);
/** A step's, from the first settled sample to the last. */
const [from, to] = [settled[0]!, settled.at(-1)!];
const each = (of: "objects" | "polls") => (to[of] - from[of]) / (to.steps - from.steps);
const [objects, polls] = [each("objects"), each("polls")];
console.log(JSON.stringify({
  bench: "memory over time",
  provider: backend.traits.provider,
  device: backend.traits.description,
  type: half ? "float32" : type,
  bounds_checks: boundsChecks,
  steps_per_second: steps / elapsed(),
  rss_bytes_a_minute: 60 * slope(settled, "seconds", "rss"),
  heap_bytes_a_minute: 60 * slope(settled, "seconds", "heapUsed"),
  beside_heap_bytes_a_minute: 60 * slope(settled, "seconds", "besideHeap"),
  rss_bytes_a_step: slope(settled, "steps", "rss"),
  last_rss_bytes_a_minute: 60 * slope(last, "seconds", "rss"),
  last_rss_bytes_a_step: slope(last, "steps", "rss"),
  objects_a_step: objects,
  polls_a_step: polls,
  counted_bytes_a_step: bytesOfObject * objects + bytesOfPoll * polls,
}));
loader.close();
session[Symbol.dispose]();
backend[Symbol.dispose]();
