/**
 * Interleaved 1F1B (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters"): each stage
 * holds several chunks of the model, so that a micro-batch passes every stage several times, in smaller pieces, and the
 * pipeline fills sooner.
 *
 * Bubble of every stage: `(stages - 1) · (forward + backward) / chunks`, times those of a whole stage; in return there are
 * `chunks` times as many messages, and more micro-batches in flight.
 */
import { type PipelineShape, type ScheduleStep, ScheduleWriter } from "./schedule.ts";

export interface InterleavedShape extends PipelineShape {
  readonly chunks: number;
  /**
   * Messages of a pass travel while the next one computes (`parallel.pipeline.interleaved_overlap`). Without, all wait
   * until a forward and a backward pass are done. @default {true}
   */
  readonly overlap?: boolean;
}

/**
 * The schedule of one stage. Step t of a pass (forward, or backward with the chunks in reverse) is chunk
 * `⌊(t mod stages·chunks) / stages⌋` of micro-batch `⌊t / (stages·chunks)⌋ · stages + t mod stages`.
 *
 * @throws {RangeError} when the micro-batches are no multiple of the stages, except in an evaluation
 */
export function interleaved({ overlap = true, ...shape }: InterleavedShape, stage: number): ScheduleStep[] {
  const writer = new ScheduleWriter({ forwardOnly: false, ...shape }, stage);
  const { stages, chunks, microBatches, forwardOnly } = writer.shape;
  if (microBatches % stages !== 0 && !forwardOnly) {
    throw new RangeError(
      `Cannot interleave ${microBatches} micro-batches over ${stages} stages: they must be a multiple; ` +
        `${stages * Math.ceil(microBatches / stages)} would work`,
    );
  }
  const total = microBatches * chunks, group = stages * chunks;
  const forwardAt = (t: number) => {
    const first = Math.floor(t / group) * stages;
    // Only in an evaluation are there fewer in the last group.
    const together = Math.min(stages, microBatches - first);
    return [first + t % group % together, Math.floor(t % group / together)] as const;
  };
  const backwardAt = (t: number) => {
    const [microBatch, chunk] = forwardAt(t);
    return [microBatch, chunks - 1 - chunk] as const;
  };
  const receiveForward = (t: number) => t < total ? writer.receiveForward(...forwardAt(t)) : undefined;
  const receiveBackward = (t: number) => t < total ? writer.receiveBackward(...backwardAt(t)) : undefined;
  const sendForward = (t: number) => writer.sendForward(...forwardAt(t));
  const sendBackward = (t: number) => writer.sendBackward(...backwardAt(t));

  const allWarmUp = forwardOnly || microBatches === stages;
  const warmUp = allWarmUp ? total : Math.min(2 * (stages - stage - 1) + (chunks - 1) * stages, total);
  const steady = total - warmUp;

  writer.exchange([receiveForward(0)]);
  for (let t = 0; t < warmUp; t++) {
    writer.run("forward", ...forwardAt(t));
    // The last of these receives what the first backward pass needs, one step ahead.
    const ahead = t === warmUp - 1 && steady > 0 && !overlap ? receiveBackward(0) : undefined;
    writer.exchange([sendForward(t), receiveForward(t + 1), ahead]);
  }
  if (forwardOnly) return writer.steps;

  // With overlap an exchange of gradients is pending while a forward pass runs, one of activations while a backward does.
  let pending: Parameters<ScheduleWriter["exchange"]>[0] = [];
  if (steady === 0 || overlap) writer.exchange([receiveBackward(0)]);
  for (let i = 0; i < steady; i++) {
    const t = warmUp + i;
    writer.run("forward", ...forwardAt(t));
    if (!overlap) {
      writer.run("backward", ...backwardAt(i));
      writer.exchange([sendForward(t), sendBackward(i), receiveForward(t + 1), receiveBackward(i + 1)]);
      continue;
    }
    writer.exchange(pending, "wait");
    const activations = [sendForward(t), receiveForward(t + 1)];
    writer.exchange(activations, "start");
    writer.run("backward", ...backwardAt(i));
    writer.exchange(activations, "wait");
    pending = [sendBackward(i), receiveBackward(i + 1)];
    writer.exchange(pending, "start");
  }
  writer.exchange(pending, "wait");
  for (let t = steady; t < total; t++) {
    writer.run("backward", ...backwardAt(t));
    writer.exchange([sendBackward(t), receiveBackward(t + 1)]);
  }
  return writer.steps;
}
