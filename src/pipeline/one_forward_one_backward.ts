/**
 * 1F1B (Narayanan et al. 2019, "PipeDream"; Fan et al. 2021, "DAPPLE"): a stage runs ahead by as many forward passes as
 * there are stages behind it, then takes turns, one forward and one backward pass, so that no more than `stages - stage`
 * micro-batches are ever in flight.
 *
 * Bubble of every stage: `(stages - 1) · (forward + backward)`.
 */
import { type PipelineShape, type ScheduleStep, ScheduleWriter } from "./schedule.ts";

/**
 * The schedule of one stage.
 *
 * @example
 * ```ts
 * import { oneForwardOneBackward } from "./one_forward_one_backward.ts";
 * const steps = oneForwardOneBackward({ stages: 2, microBatches: 2 }, 0);
 * const runs = steps.flatMap((step) => step.kind === "run" ? [`${step.segment} ${step.microBatch}`] : []);
 * console.assert(runs.join() === "forward 0,forward 1,backward 0,backward 1");
 * ```
 */
export function oneForwardOneBackward(shape: Omit<PipelineShape, "chunks">, stage: number): ScheduleStep[] {
  const writer = new ScheduleWriter({ forwardOnly: false, ...shape, chunks: 1 }, stage);
  const { microBatches, stages, forwardOnly } = writer.shape;
  const warmUp = forwardOnly ? microBatches : Math.min(stages - stage - 1, microBatches);
  const steady = microBatches - warmUp;

  for (let i = 0; i < warmUp; i++) {
    writer.exchange([writer.receiveForward(i)]);
    writer.run("forward", i);
    writer.exchange([writer.sendForward(i)]);
  }
  if (forwardOnly) return writer.steps;
  if (steady > 0) writer.exchange([writer.receiveForward(warmUp)]);
  for (let i = 0; i < steady; i++) {
    writer.run("forward", warmUp + i);
    writer.exchange([writer.sendForward(warmUp + i), writer.receiveBackward(i)]);
    writer.run("backward", i);
    const next = i + 1 < steady ? writer.receiveForward(warmUp + i + 1) : undefined;
    writer.exchange([writer.sendBackward(i), next]);
  }
  for (let i = steady; i < microBatches; i++) {
    writer.exchange([writer.receiveBackward(i)]);
    writer.run("backward", i);
    writer.exchange([writer.sendBackward(i)]);
  }
  return writer.steps;
}
