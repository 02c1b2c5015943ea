/**
 * Real trainings of four stages on a movable clock: real trainers on the CPU backend, in one thread, over the pipeline's own
 * channels; each pass takes the seconds it is said to take. Writes what happened as pictures and Chrome traces:
 *
 *     deno run --allow-read --allow-env --allow-write=OUT tests/pipeline_clock.ts OUT
 */
import { openBackend } from "../src/backend/open.ts";
import { scheduleTitle } from "../src/cli/plan.ts";
import type { ResolvedConfig } from "../src/config/mod.ts";
import { drawTimeline, traceTimeline } from "../src/pipeline/draw.ts";
import type { Costs, Timeline } from "../src/pipeline/simulate.ts";
import { drawnMicroBatch, openTrainer, takeStep, tinyRecord } from "../src/train/_testing.ts";
import { StageClock, timelineOfClocks } from "./stage_clock.ts";
import { together } from "./worlds.ts";

export const stages = 4, microBatches = 8;

export interface Drawn {
  /** Of the picture in docs/. */
  readonly name: "1f1b" | "interleaved" | "zbh1";
  readonly pipeline: Record<string, unknown>;
  readonly chunks: number;
}
export const drawn: readonly Drawn[] = [
  { name: "1f1b", pipeline: {}, chunks: 1 },
  { name: "interleaved", pipeline: { interleaved_overlap: true }, chunks: 2 },
  { name: "zbh1", pipeline: { schedule: "zbh1" }, chunks: 1 },
];

/** A forward pass of a stage takes one unit, a backward pass two, halves of it one each. */
export const units = (chunks: number): Costs => ({ run: (segment) => (segment === "backward" ? 2 : 1) / chunks });

export const recordOf = (
  { pipeline, chunks }: Pick<Drawn, "pipeline" | "chunks">,
  model: object = {},
): ResolvedConfig =>
  tinyRecord({
    model: { num_layers: 8, num_chunks: chunks, ...model },
    data: { micro_num: microBatches },
    parallel: { pipeline: { size: stages, ...pipeline } },
  }, { worldSize: stages });

/** Trains for some steps and tells what happened in the last one, with the losses of all. */
export async function train(
  config: ResolvedConfig,
  costs: Costs,
  steps = 1,
): Promise<{ timeline: Timeline; losses: number[] }> {
  const ranks = await together(stages, async (worldOf, rank) => {
    const plain = worldOf(config), losses: number[] = [];
    let clock = new StageClock(rank, costs);
    const pipeline = plain.group("pipeline");
    const carrying: typeof pipeline = {
      ...pipeline,
      send: (to, data) => clock.carrying(pipeline).send(to, data),
      receive: (from, into) => clock.carrying(pipeline).receive(from, into),
    };
    const world = { ...plain, group: (mode: "pipeline") => mode === "pipeline" ? carrying : plain.group(mode) };
    using backend = await openBackend("cpu");
    using trainer = await openTrainer(config, backend, world as typeof plain);
    for (let step = 0; step < steps; step++) {
      trainer.observer = clock = new StageClock(rank, costs);
      const batch = Array.from({ length: microBatches }, (_, index) => drawnMicroBatch(`${step} ${index}`, [5, 4]));
      losses.push((await takeStep(trainer, batch)).loss);
    }
    return { clock, losses };
  });
  return { timeline: timelineOfClocks(ranks.map(({ clock }) => clock)), losses: ranks[0]!.losses };
}

if (import.meta.main) {
  const [out] = Deno.args;
  if (out === undefined) {
    console.error("Name the folder to write to: deno run … tests/pipeline_clock.ts OUT");
    Deno.exit(2);
  }
  await Deno.mkdir(out, { recursive: true });
  for (const { name, ...layout } of drawn) {
    const config = recordOf(layout), { timeline } = await train(config, units(layout.chunks));
    await Deno.writeTextFile(`${out}/pipeline_${name}.svg`, drawTimeline(timeline, { title: scheduleTitle(config) }));
    await Deno.writeTextFile(`${out}/pipeline_${name}.json`, JSON.stringify(traceTimeline(timeline)));
    console.log(`${name}: ${(100 * timeline.bubble).toFixed(1)} % idle, ${timeline.seconds} units`);
  }
}
