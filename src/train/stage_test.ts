import { assertEquals } from "@std/assert";
import { framesOf } from "../pipeline/schedule.ts";
import { tinyRecord } from "./_testing.ts";
import { stageSchedule } from "./stage.ts";

Deno.test("stageSchedule() has frames for every size of a batch that grows, however the stages interleave", () => {
  const stages = 4,
    micro_num = 12,
    record = (rampup_batch_size: string) =>
      tinyRecord({
        model: { num_layers: 8, num_chunks: 2 },
        data: { micro_num, rampup_batch_size },
        parallel: { pipeline: { size: stages } },
      }, { worldSize: stages });
  const mesh = (stage: number) => ({ size: () => stages, index: () => stage });
  for (let stage = 0; stage < stages; stage++) {
    const { frames, schedule, own } = stageSchedule(record("4 4 1"), mesh(stage));
    const needed = [4, 8, 12].map((size) => own.map((_, chunk) => framesOf(schedule(size), chunk)));
    assertEquals(frames, own.map((_, chunk) => Math.max(...needed.map((each) => each[chunk]!))), `stage ${stage}`);
    assertEquals(stageSchedule(record(""), mesh(stage)).frames, needed[2], "full batches need no more than they use");
  }
});
