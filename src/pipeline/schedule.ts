/**
 * Schedules are data: the order in which one rank runs the segments of its program over the micro-batches of a step.
 * The planner takes a schedule's count of frames, the trainer executes it.
 */

export interface ScheduleStep {
  readonly segment: "forward" | "backward";
  readonly microBatch: number;
  /** Which of the frames in flight holds this micro-batch's saved set. */
  readonly frame: number;
}

/** One micro-batch after another, each forward and backward, gradients summing up: a single frame is in flight. */
export function gradientAccumulation(microBatches: number): ScheduleStep[] {
  return Array.from({ length: microBatches }, (_, microBatch) => [
    { segment: "forward" as const, microBatch, frame: 0 },
    { segment: "backward" as const, microBatch, frame: 0 },
  ]).flat();
}

/** Frames that a schedule needs. */
export const framesOf = (schedule: readonly ScheduleStep[]): number =>
  1 + Math.max(0, ...schedule.map(({ frame }) => frame));
