/**
 * ZB-H1 (Qi et al. 2023, "Zero Bubble Pipeline Parallelism"): the handcrafted schedule that holds no more than 1F1B does.
 *
 * The backward pass is cut in two. The gradient of a stage's input is what the stage before waits for; the gradients of
 * its weights nobody waits for, so they are put off to where the stage would else be idle. Stage `s` puts off `s` of them:
 * as many as it has fewer forward passes in flight than the first stage, so that every stage holds `stages` micro-batches.
 *
 * Bubble of every stage: `(stages - 1) · (forward + backward input - backward weight)`, where 1F1B has
 * `(stages - 1) · (forward + backward input + backward weight)`.
 */
import { type PipelineShape, type ScheduleStep, ScheduleWriter } from "./schedule.ts";
import { oneForwardOneBackward } from "./one_forward_one_backward.ts";

/** The schedule of one stage. */
export function zeroBubbleH1(shape: Omit<PipelineShape, "chunks">, stage: number): ScheduleStep[] {
  if (shape.forwardOnly) return oneForwardOneBackward(shape, stage);
  const writer = new ScheduleWriter({ forwardOnly: false, ...shape, chunks: 1 }, stage);
  const { microBatches, stages } = writer.shape;
  const warmUp = Math.min(stages - stage - 1, microBatches), steady = microBatches - warmUp;

  let weightsDone = 0;
  const backwardWeight = () => writer.run("backward weight", weightsDone++);

  for (let i = 0; i < warmUp; i++) {
    writer.exchange([writer.receiveForward(i)]);
    writer.run("forward", i);
    writer.exchange([writer.sendForward(i)]);
  }
  if (steady > 0) writer.exchange([writer.receiveForward(warmUp)]);
  for (let i = 0; i < microBatches; i++) {
    if (i < steady) {
      writer.run("forward", warmUp + i);
      writer.exchange([writer.sendForward(warmUp + i), writer.receiveBackward(i)]);
    } else if (i === 0) writer.exchange([writer.receiveBackward(0)]);
    writer.run("backward input", i);
    const next = i + 1 < steady
      ? writer.receiveForward(warmUp + i + 1)
      : i + 1 < microBatches && i + 1 >= steady
      ? writer.receiveBackward(i + 1)
      : undefined;
    const messages = [writer.sendBackward(i), next];
    writer.exchange(messages, "start");
    if (i >= Math.min(stage, steady)) backwardWeight();
    writer.exchange(messages, "wait");
  }
  while (weightsDone < microBatches) backwardWeight();
  return writer.steps;
}
