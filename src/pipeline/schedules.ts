/** The schedules by name, as `parallel.pipeline.schedule` has them. */
import { interleaved } from "./interleaved.ts";
import { oneForwardOneBackward } from "./one_forward_one_backward.ts";
import { gradientAccumulation, type PipelineShape, type ScheduleStep } from "./schedule.ts";
import { zeroBubbleH1 } from "./zero_bubble.ts";

export type ScheduleName = "1f1b" | "interleaved" | "zbh1";

export interface ScheduleOptions extends PipelineShape {
  readonly name: ScheduleName;
  /** Of the interleaved schedule. @default {true} */
  readonly overlap?: boolean;
}

/**
 * What one stage does in a step. A pipeline of one stage accumulates gradients, whatever the name.
 *
 * @throws {RangeError} for a number of micro-batches that the schedule cannot take
 */
export function scheduleOf({ name, overlap = true, ...shape }: ScheduleOptions, stage: number): ScheduleStep[] {
  const { stages, chunks = 1, microBatches, forwardOnly = false } = shape;
  if (stages === 1 && chunks === 1 && !forwardOnly) return gradientAccumulation(microBatches);
  if (name === "zbh1") return zeroBubbleH1(shape, stage);
  // Also where the other name is asked for: with one chunk a stage there is nothing to interleave, with more there is.
  return chunks > 1 ? interleaved({ ...shape, chunks, overlap }, stage) : oneForwardOneBackward(shape, stage);
}
