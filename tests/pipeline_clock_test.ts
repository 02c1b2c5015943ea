/** Traces of real four-stage trainings on a movable clock, beside the simulator, the papers' formulas and the docs' pictures. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { scheduleTitle } from "../src/cli/plan.ts";
import { drawTimeline, traceTimeline } from "../src/pipeline/draw.ts";
import type { Pass } from "../src/pipeline/schedule.ts";
import { type ScheduleName, scheduleOf } from "../src/pipeline/schedules.ts";
import { type Costs, simulate, type Timeline } from "../src/pipeline/simulate.ts";
import { drawn, microBatches, recordOf, stages, train, units } from "./pipeline_clock.ts";

const simulated = (name: ScheduleName, chunks: number, costs: Costs, overlap = true): Timeline =>
  simulate(
    Array.from({ length: stages }, (_, stage) => scheduleOf({ name, stages, microBatches, chunks, overlap }, stage)),
    costs,
  );

/** The same passes and messages at the same times; which of two at one moment comes first is nobody's. */
function assertSameTimelines(real: Timeline, expected: Timeline) {
  const sorted = (each: readonly object[]) =>
    each.map((entry) => JSON.stringify(entry, Object.keys(entry).sort())).sort();
  assertEquals(sorted(real.runs), sorted(expected.runs));
  assertEquals(sorted(real.messages), sorted(expected.messages));
  assertEquals([real.seconds, real.idle, real.bubble], [expected.seconds, expected.idle, expected.bubble]);
}

for (const { name, ...layout } of drawn) {
  Deno.test(`the trace of a real 4-stage training is docs/pipeline_${name}.svg, and idles as its paper says`, async () => {
    const config = recordOf(layout), { chunks } = layout, { timeline } = await train(config, units(chunks));
    assertSameTimelines(timeline, simulated(name, chunks, units(chunks)));
    const picture = Deno.readTextFileSync(new URL(`../docs/pipeline_${name}.svg`, import.meta.url));
    assertEquals(drawTimeline(timeline, { title: scheduleTitle(config) }).trimEnd(), picture.trimEnd());
    const events = traceTimeline(timeline) as { ph: string; dur: number }[];
    const passes = stages * microBatches * chunks * (name === "zbh1" ? 3 : 2);
    assertEquals(events.filter(({ ph }) => ph === "X").length, passes);

    // Seconds of a forward pass, of the gradients of inputs and of weights, of a whole stage.
    const F = 1, B = 1, W = 1, each = F + B + W;
    const idle = {
      "1f1b": (stages - 1) * each,
      interleaved: (stages - 1) * each / chunks,
      zbh1: (stages - 1) * (F + B - W),
    };
    for (const seconds of timeline.idle) assertAlmostEquals(seconds, idle[name], 1e-9);
    assertAlmostEquals(timeline.bubble, idle[name] / (microBatches * each + idle[name]), 1e-9);
  });
}

Deno.test("ZB-H1 idles less than 1F1B in real trainings by twice the weights' time for each stage but one", async () => {
  const seconds: Record<Pass, number> = { forward: 2, backward: 3.5, "backward input": 2, "backward weight": 1.5 };
  const costs: Costs = { run: (segment) => seconds[segment] };
  const of = (pipeline: Record<string, unknown>) => train(recordOf({ pipeline, chunks: 1 }), costs, 2);
  const [plain, zero] = [await of({}), await of({ schedule: "zbh1" })];
  const saved = 2 * (stages - 1) * seconds["backward weight"];
  plain.timeline.idle.forEach((idle, stage) => assertAlmostEquals(idle - zero.timeline.idle[stage]!, saved, 1e-9));
  zero.losses.forEach((loss, step) => assertAlmostEquals(loss, plain.losses[step]!, 2e-4));
  assert(zero.losses[1] !== zero.losses[0], "it trains");
});

Deno.test("a real training waits for slow links where the simulator says, with messages overlapped and not", async () => {
  const costs = (chunks: number): Costs => ({
    run: (segment, { stage, chunk }) => ((segment === "backward" ? 2 : 1) + stage / 8 + chunk / 16) / chunks,
    transfer: ({ carries }) => carries === "activation" ? 0.25 : 0.5,
    latency: 0.125,
  });
  const idle: number[] = [];
  for (const overlap of [true, false]) {
    const config = recordOf({ pipeline: { interleaved_overlap: overlap }, chunks: 2 });
    const { timeline } = await train(config, costs(2));
    assertSameTimelines(timeline, simulated("interleaved", 2, costs(2), overlap));
    idle.push(timeline.seconds);
  }
  assert(idle[0]! < idle[1]!, `${idle}`);
  const tied = recordOf({ pipeline: { schedule: "zbh1" }, chunks: 1 }, { tie_word_embeddings: true });
  const { timeline } = await train(tied, costs(1), 2);
  assertSameTimelines(timeline, simulated("zbh1", 1, costs(1)));
});
