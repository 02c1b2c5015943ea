/**
 * Schedules are data: the order in which one rank runs the segments of its program over the micro-batches of a step, and
 * what it exchanges with the stages beside it. The planner takes a schedule's count of frames, the trainer executes it,
 * the simulator plays those of all stages against each other.
 *
 * Words: a *stage* is a rank's place in the pipeline. A model may be cut finer: each stage then holds several *chunks*,
 * dealt out in turn, so that chunk `c` of stage `s` is piece `c · stages + s` of the model, counted from the front.
 */

/**
 * What is computed. A zero-bubble schedule runs the backward pass in two halves: the gradients of inputs, which the
 * stage before waits for, and those of weights, which nobody waits for.
 */
export type Pass = "forward" | "backward" | "backward input" | "backward weight";

export interface Run {
  readonly kind: "run";
  readonly segment: Pass;
  readonly chunk: number;
  readonly microBatch: number;
  /** Which of the chunk's frames in flight holds this micro-batch's saved set. */
  readonly frame: number;
}

/** A tensor that crosses from one piece of the model to the next, or its gradient on the way back. */
export interface Message {
  readonly direction: "send" | "receive";
  readonly carries: "activation" | "gradient";
  /** The chunk of this stage whose output or input (or its gradient) it is. */
  readonly chunk: number;
  readonly microBatch: number;
  /** The stage at the other end. */
  readonly peer: number;
}

/**
 * Messages that go and come together. What is received must be there when an exchange ends; what is sent may still be on
 * its way: a stage waits for data, never for a reader. `start` begins one that the next `wait` ends.
 */
export interface Exchange {
  readonly kind: "exchange";
  readonly phase: "whole" | "start" | "wait";
  readonly messages: readonly Message[];
}

export type ScheduleStep = Run | Exchange;

/** What the stages of a pipeline agree on. */
export interface PipelineShape {
  readonly stages: number;
  /** Micro-batches of the step. */
  readonly microBatches: number;
  /** Pieces of the model on each stage. @default {1} */
  readonly chunks?: number;
  /** Evaluation: no backward passes. @default {false} */
  readonly forwardOnly?: boolean;
}

/** One micro-batch after another, each forward and backward, gradients summing up: a single frame is in flight. */
export function gradientAccumulation(microBatches: number): (Run & { readonly segment: "forward" | "backward" })[] {
  return Array.from({ length: microBatches }, (_, microBatch) => [
    { kind: "run" as const, segment: "forward" as const, chunk: 0, microBatch, frame: 0 },
    { kind: "run" as const, segment: "backward" as const, chunk: 0, microBatch, frame: 0 },
  ]).flat();
}

/** Frames that a schedule needs for a chunk: its micro-batches in flight at once. */
export const framesOf = (schedule: readonly ScheduleStep[], chunk = 0): number =>
  1 + Math.max(-1, ...schedule.map((step) => step.kind === "run" && step.chunk === chunk ? step.frame : -1));

/** Writes a schedule in order, gives each micro-batch in flight the least free frame, and knows who is beside a stage. */
export class ScheduleWriter {
  readonly steps: ScheduleStep[] = [];
  readonly #free: number[][];
  readonly #made: number[];
  readonly #held = new Map<string, number>();

  /** @throws {RangeError} for sizes that no pipeline has */
  constructor(readonly shape: Required<PipelineShape>, readonly stage: number) {
    const { stages, chunks, microBatches } = shape;
    for (const [name, value] of Object.entries({ stages, chunks, microBatches })) {
      if (Number.isSafeInteger(value) && value >= 1) continue;
      throw new RangeError(`Cannot write a schedule: ${name} is ${value}; a whole number from 1 on would work`);
    }
    if (!(Number.isSafeInteger(stage) && stage >= 0 && stage < stages)) {
      throw new RangeError(`Cannot write a schedule: stage ${stage} is not one of 0 to ${stages - 1}`);
    }
    this.#free = Array.from({ length: chunks }, () => []);
    this.#made = Array.from({ length: chunks }, () => 0);
  }

  run(segment: Pass, microBatch: number, chunk = 0): void {
    const key = `${chunk} ${microBatch}`, free = this.#free[chunk]!;
    if (segment === "forward") {
      const frame = free.length > 0 ? free.sort((a, b) => a - b).shift()! : this.#made[chunk]!++;
      this.#held.set(key, frame);
    }
    const frame = this.#held.get(key);
    if (frame === undefined) throw new TypeError(`Cannot run ${segment} of micro-batch ${key}: it has no frame`);
    if (segment === "backward" || segment === "backward weight" || this.shape.forwardOnly) {
      this.#held.delete(key);
      free.push(frame);
    }
    this.steps.push({ kind: "run", segment, chunk, microBatch, frame });
  }

  /** An exchange; messages that do not exist (before the first piece, behind the last) are left out, and so is nothing. */
  exchange(messages: readonly (Message | undefined)[], phase: Exchange["phase"] = "whole"): void {
    const real = messages.filter((message) => message !== undefined);
    if (real.length > 0) this.steps.push({ kind: "exchange", phase, messages: real });
  }

  /** The output of a micro-batch to the piece behind. */
  sendForward = (microBatch: number, chunk = 0): Message | undefined =>
    this.#message("send", "activation", microBatch, chunk);
  /** The input of a micro-batch from the piece before. */
  receiveForward = (microBatch: number, chunk = 0): Message | undefined =>
    this.#message("receive", "activation", microBatch, chunk);
  /** The gradient of a micro-batch's input to the piece before. */
  sendBackward = (microBatch: number, chunk = 0): Message | undefined =>
    this.#message("send", "gradient", microBatch, chunk);
  /** The gradient of a micro-batch's output from the piece behind. */
  receiveBackward = (microBatch: number, chunk = 0): Message | undefined =>
    this.#message("receive", "gradient", microBatch, chunk);

  #message(
    direction: Message["direction"],
    carries: Message["carries"],
    microBatch: number,
    chunk: number,
  ): Message | undefined {
    const { stages, chunks } = this.shape, piece = chunk * stages + this.stage;
    const other = (direction === "send") === (carries === "activation") ? piece + 1 : piece - 1;
    if (other < 0 || other >= stages * chunks) return undefined;
    return { direction, carries, chunk, microBatch, peer: other % stages };
  }
}
