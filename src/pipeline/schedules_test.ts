import { assert, assertAlmostEquals, assertEquals, assertThrows } from "@std/assert";
import { drawTimeline, traceTimeline } from "./draw.ts";
import { framesOf, gradientAccumulation, type Pass, type ScheduleStep } from "./schedule.ts";
import { scheduleOf, type ScheduleOptions } from "./schedules.ts";
import { type Costs, DeadlockError, simulate } from "./simulate.ts";

const all = (options: ScheduleOptions) =>
  Array.from({ length: options.stages }, (_, stage) => scheduleOf(options, stage));

const shapes = [[2, 2], [2, 4], [3, 6], [4, 4], [4, 8], [4, 12], [8, 16]].map(([stages, microBatches]) => ({
  stages: stages!,
  microBatches: microBatches!,
}));
const kinds = [
  { name: "1f1b" },
  { name: "zbh1" },
  ...[2, 3].flatMap((chunks) => [true, false].map((overlap) => ({ name: "interleaved", chunks, overlap }) as const)),
] as const;

/** Seconds of each pass of a whole stage; a backward pass is both halves. */
const costs = ({ forward, input, weight }: Record<"forward" | "input" | "weight", number>, chunks = 1): Costs => {
  const seconds: Record<Pass, number> = {
    "forward": forward,
    "backward": input + weight,
    "backward input": input,
    "backward weight": weight,
  };
  return { run: (segment) => seconds[segment] / chunks };
};

Deno.test("schedules run each pass of each chunk and micro-batch once, in frames of their own", () => {
  for (const shape of shapes) {
    for (const kind of kinds) {
      for (const forwardOnly of [false, true]) {
        for (const schedule of all({ ...shape, ...kind, forwardOnly })) {
          const done: Record<string, number> = {}, held = new Map<string, string>();
          for (const step of schedule) {
            if (step.kind !== "run") continue;
            const { segment, chunk, microBatch, frame } = step, work = `${chunk} ${microBatch}`;
            done[`${segment} ${work}`] = (done[`${segment} ${work}`] ?? 0) + 1;
            const place = `${chunk} ${frame}`;
            if (segment === "forward") {
              assert(forwardOnly || !held.has(place), `${place} is taken`);
              held.set(place, work);
            }
            assertEquals(held.get(place), work);
            if (segment === "backward" || segment === "backward weight") held.delete(place);
          }
          const chunks = "chunks" in kind ? kind.chunks : 1;
          const halves = forwardOnly ? 1 : kind.name === "zbh1" ? 3 : 2;
          assertEquals(Object.values(done), Array(shape.microBatches * chunks * halves).fill(1));
          assert(forwardOnly || held.size === 0);
        }
      }
    }
  }
});

/** The most micro-batches of all chunks that are ever between their forward pass and the end of their backward pass. */
function mostInFlight(schedule: readonly ScheduleStep[]): number {
  let now = 0, most = 0;
  for (const step of schedule) {
    if (step.kind !== "run") continue;
    if (step.segment === "forward") most = Math.max(most, ++now);
    else if (step.segment !== "backward input") now--;
  }
  return most;
}

Deno.test("schedules hold as many micro-batches as their papers say, and plan a frame for each", () => {
  for (const { stages, microBatches } of shapes) {
    const schedulesOf = (options: Partial<ScheduleOptions>) => all({ stages, microBatches, name: "1f1b", ...options });
    for (const name of ["1f1b", "zbh1"] as const) {
      const schedules = schedulesOf({ name });
      const expected = schedules.map((_, stage) => Math.min(name === "zbh1" ? stages : stages - stage, microBatches));
      assertEquals(schedules.map(mostInFlight), expected, `${name}: ZB-H1 holds no more than 1F1B's first stage`);
      assertEquals(schedules.map((schedule) => framesOf(schedule)), expected);
    }
    for (const chunks of [2, 3]) {
      const schedules = schedulesOf({ name: "interleaved", chunks });
      // Narayanan et al. 2021: warm-up of 2 (stages - stage - 1) + (chunks - 1) stages, and the one at work.
      const expected = schedules.map((_, stage) =>
        microBatches === stages
          ? chunks * microBatches
          : Math.min(2 * (stages - stage - 1) + (chunks - 1) * stages + 1, chunks * microBatches)
      );
      assertEquals(schedules.map(mostInFlight), expected);
      for (const schedule of schedules) {
        for (let chunk = 0; chunk < chunks; chunk++) {
          const own = schedule.filter((step) => step.kind === "run" && step.chunk === chunk);
          assertEquals(framesOf(schedule, chunk), mostInFlight(own), "a frame for each, chunk by chunk");
        }
      }
    }
    assertEquals(schedulesOf({ forwardOnly: true }).map((schedule) => framesOf(schedule)), Array(stages).fill(1));
  }
  assertEquals(framesOf(gradientAccumulation(5)), 1);
  assertEquals(framesOf([], 0), 0);
});

Deno.test("simulate() plays every schedule to its end, with messages between two stages in one order on both", () => {
  for (const shape of shapes) {
    for (const kind of kinds) {
      for (const forwardOnly of [false, true]) {
        const { runs, messages } = simulate(all({ ...shape, ...kind, forwardOnly }), {
          run: () => 1,
          transfer: () => 0.25,
          latency: 0.125,
        });
        assert(runs.length > 0);
        const pieces = shape.stages * ("chunks" in kind ? kind.chunks : 1);
        assertEquals(messages.length, (forwardOnly ? 1 : 2) * (pieces - 1) * shape.microBatches);
      }
    }
  }
});

Deno.test("the bubble of 1F1B, interleaved and ZB-H1 is what the papers' formulas say", () => {
  const times = [
    { forward: 1, input: 1, weight: 1 },
    { forward: 1, input: 1.25, weight: 0.75 },
    { forward: 2, input: 2, weight: 1.5 },
  ];
  for (const { stages, microBatches } of shapes) {
    for (const time of times) {
      const work = microBatches * (time.forward + time.input + time.weight);
      const bubble = (options: Partial<ScheduleOptions>) =>
        simulate(all({ stages, microBatches, name: "1f1b", ...options }), costs(time, options.chunks)).seconds - work;
      const whole = time.forward + time.input + time.weight;
      assertAlmostEquals(bubble({}), (stages - 1) * whole, 1e-9);
      for (const chunks of [2, 3, 4]) {
        for (const overlap of [true, false]) {
          assertAlmostEquals(bubble({ name: "interleaved", chunks, overlap }), (stages - 1) * whole / chunks, 1e-9);
        }
      }
      // Qi et al. 2023, table 2; holds from as many micro-batches as stages on, where weights take no longer than inputs.
      assertAlmostEquals(bubble({ name: "zbh1" }), (stages - 1) * (time.forward + time.input - time.weight), 1e-9);
    }
  }
});

Deno.test("an interleaved evaluation takes any number of micro-batches", () => {
  for (let microBatches = 1; microBatches < 10; microBatches++) {
    const shape = { stages: 4, microBatches, chunks: 2, forwardOnly: true } as const;
    const { runs } = simulate(all({ ...shape, name: "interleaved" }), { run: () => 1 });
    const done = new Set(runs.map(({ stage, chunk, microBatch }) => `${stage} ${chunk} ${microBatch}`));
    assertEquals([runs.length, done.size], [8 * microBatches, 8 * microBatches]);
  }
});

Deno.test("simulate() makes a slow link cost what it costs", () => {
  // Two stages, one micro-batch: forward, message, forward, backward, message, backward.
  const { seconds, idle, bubble, messages } = simulate(all({ stages: 2, microBatches: 1, name: "1f1b" }), {
    run: (segment) => segment === "forward" ? 1 : 2,
    transfer: () => 0.5,
    latency: 0.25,
  });
  assertEquals(seconds, 1 + 0.75 + 3 + 0.75 + 2);
  assertEquals(idle, [4.5, 4.5]);
  assertEquals(bubble, 4.5 / 7.5);
  assertEquals(messages.map(({ start, end }) => [start, end]), [[1, 1.75], [4.75, 5.5]]);
});

Deno.test("simulate() refuses schedules that wait for each other, naming who waits for what", () => {
  const message = { carries: "activation", chunk: 0, microBatch: 0 } as const;
  const waiting = (peer: number): ScheduleStep[] => [
    { kind: "exchange", phase: "whole", messages: [{ ...message, direction: "receive", peer }] },
    { kind: "exchange", phase: "whole", messages: [{ ...message, direction: "send", peer }] },
  ];
  const error = assertThrows(() => simulate([waiting(1), waiting(0)], { run: () => 1 }), DeadlockError);
  assertEquals(
    error.message,
    "Cannot play these schedules to their end: stage 0 waits for the activation of micro-batch 0 from stage 1; " +
      "stage 1 waits for the activation of micro-batch 0 from stage 0",
  );
  // Backward before what it waits for can come: stage 1 wants a gradient that nobody sends.
  const schedules = all({ stages: 2, microBatches: 2, name: "1f1b" });
  assertThrows(() => simulate([schedules[0]!, schedules[1]!.slice(0, 2)], { run: () => 1 }), DeadlockError, "stage 0");
  const swapped = all({ stages: 2, microBatches: 2, name: "1f1b", forwardOnly: true });
  assertThrows(() => simulate([swapped[0]!.toReversed(), swapped[1]!], { run: () => 1 }), RangeError, "something else");
});

Deno.test("drawTimeline() and traceTimeline() show every pass where it was", () => {
  const timeline = simulate(
    all({ stages: 4, microBatches: 8, name: "zbh1" }),
    costs({ forward: 1, input: 1, weight: 1 }),
  );
  const svg = drawTimeline(timeline, { title: "ZB-H1 <4>" });
  assertEquals(svg.match(/<rect /g)!.length, 1 + 4 + 4 * 8 * 3 + 3, "background, rows, passes, legend");
  assert(svg.includes("ZB-H1 &lt;4&gt;: 11.1 % idle"), svg.slice(0, 400));
  const events = traceTimeline(timeline) as { ph: string; pid: number; name: string; ts: number; dur: number }[];
  const passes = events.filter(({ ph }) => ph === "X");
  assertEquals(passes.length, 4 * 8 * 3);
  assertEquals(passes.filter(({ pid }) => pid === 3).map(({ name, ts }) => `${name} ${ts / 1e6}`).slice(0, 4), [
    "forward 0 3",
    "backward input 0 4",
    "forward 1 5",
    "backward input 1 6",
  ]);
});
