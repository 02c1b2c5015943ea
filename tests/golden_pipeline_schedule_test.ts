/** The schedules of pipeline stages against what InternEvo's schedulers did, event by event. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { interleaved } from "../src/pipeline/interleaved.ts";
import { oneForwardOneBackward } from "../src/pipeline/one_forward_one_backward.ts";
import type { Message, ScheduleStep } from "../src/pipeline/schedule.ts";
import { readGoldenJson } from "./golden_dir.ts";

interface Case {
  stages: number;
  micro_num: number;
  chunks: number;
  interleaved_overlap: boolean | null;
  forward_only: boolean;
  tensor_shape_known: boolean;
  result: { stages: string[] };
}
const golden = readGoldenJson<{
  cases: Case[];
  errors: { stages?: number; micro_num?: number; chunks?: number; message: string }[];
  step_maps: {
    stages: number;
    chunks: number;
    micro_num: number;
    chunk_of_forward_step: number[];
    chunk_of_backward_step: number[];
    microbatch_of_step: number[];
  }[];
}>("internevo", "pipeline_schedule.json");

const short = ({ direction, carries }: Message) =>
  (direction === "send" ? "s" : "r") + (carries === "activation" ? "f" : "b");

/** One of our schedules in the words of the recording; brackets tell which of InternEvo's functions was called. */
function write(steps: readonly ScheduleStep[], { stages, chunks, micro_num }: Case, stage: number): string {
  return steps.map((step) => {
    if (step.kind === "exchange") {
      const messages = step.messages.map(short).join("+");
      return step.phase === "whole" ? messages : `${step.phase}[${messages}]`;
    }
    const { segment, microBatch, chunk } = step;
    if (segment === "forward") return `F${microBatch}.${chunk}`;
    const from = chunk * stages + stage === stages * chunks - 1 ? "L" : "G";
    return `B${microBatch}.${chunk}${from}${microBatch === micro_num - 1 ? "*" : ""}`;
  }).join(" ");
}

/** The recording without what has no meaning here: brackets of whole calls, calls that move nothing, messages of shapes. */
const plain = (recorded: string) =>
  recorded.split(" ").filter((event) => !/^(\[\]|start\[\]|wait\[\]|smeta|rmeta)$/.test(event))
    .map((event) => event.replace(/^\[(.*)\]$/, "$1")).join(" ");

const scheduleOf = ({ stages, micro_num, chunks, interleaved_overlap, forward_only }: Case, stage: number) => {
  const shape = { stages, microBatches: micro_num, forwardOnly: forward_only };
  return chunks === 1
    ? oneForwardOneBackward(shape, stage)
    : interleaved({ ...shape, chunks, overlap: interleaved_overlap! }, stage);
};

Deno.test("oneForwardOneBackward() and interleaved() do what InternEvo's schedulers do, event by event", () => {
  for (const test of golden.cases) {
    const { result, ...name } = test;
    assert(result.stages.length === test.stages);
    result.stages.forEach((recorded, stage) => {
      assertEquals(write(scheduleOf(test, stage), test, stage), plain(recorded), `${JSON.stringify(name)} ${stage}`);
    });
  }
  assertEquals(golden.cases.length, 77);
  const asked = golden.cases.filter(({ tensor_shape_known }) => !tensor_shape_known).length;
  console.log(`${asked} of 77 were recorded with messages of shapes, which Troupe knows beforehand: compared without`);
});

Deno.test("interleaved() maps steps to chunks and micro-batches as InternEvo does", () => {
  for (const { stages, chunks, micro_num, ...maps } of golden.step_maps) {
    const runs = interleaved({ stages, chunks, microBatches: micro_num }, 0).filter((step) => step.kind === "run");
    const [forward, backward] = ["forward", "backward"].map((pass) => runs.filter(({ segment }) => segment === pass));
    const steps = chunks * micro_num; // the recording has one more
    assertEquals(forward!.map(({ chunk }) => chunk), maps.chunk_of_forward_step.slice(0, steps));
    assertEquals(backward!.map(({ chunk }) => chunk), maps.chunk_of_backward_step.slice(0, steps));
    assertEquals(forward!.map(({ microBatch }) => microBatch), maps.microbatch_of_step.slice(0, steps));
    assertEquals(backward!.map(({ microBatch }) => microBatch), maps.microbatch_of_step.slice(0, steps));
  }
});

Deno.test("schedules are refused where InternEvo refuses them, with the numbers", () => {
  let compared = 0;
  for (const { stages, micro_num, chunks, message } of golden.errors) {
    if (stages === undefined) continue; // constructor arguments that do not exist here
    const shape = { stages, microBatches: micro_num!, chunks: chunks! };
    assertThrows(() => interleaved(shape, 0), RangeError, `${micro_num} micro-batches over ${stages} stages`, message);
    compared++;
  }
  assert(compared > 0);
  assertThrows(() => oneForwardOneBackward({ stages: 2, microBatches: 0 }, 0), RangeError, "microBatches is 0");
  assertThrows(() => interleaved({ stages: 2, microBatches: 2, chunks: 0 }, 0), RangeError, "chunks is 0");
  assertThrows(
    () => oneForwardOneBackward({ stages: 2, microBatches: 1 }, 2),
    RangeError,
    "stage 2 is not one of 0 to 1",
  );
});
