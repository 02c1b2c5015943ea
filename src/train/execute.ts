/**
 * Executes a schedule on one rank: runs its segments and exchanges activations and gradients with the stages beside it.
 * Tensors go through host memory: read back, sent, received, uploaded just before the pass that reads them. A stage waits
 * for what it receives; what it sent may be under way until the schedule ends.
 */
import type { Group } from "../comm/collectives/communicator.ts";
import type { SegmentName } from "../graph/plan.ts";
import type { Program, Wait } from "../graph/program.ts";
import type { Message, Run, ScheduleStep } from "../pipeline/schedule.ts";

/** Told what a stage does, as it does it. */
export interface StageObserver {
  /** A pass was executed. */
  ran(run: Run): void;
  /** The next message to this peer, or from it, is this one. */
  sending(message: Message): void;
  receiving(message: Message): void;
  /** The stage waited for a message until it was there. */
  waited(message: Message): void;
}

export interface ExecuteOptions {
  readonly program: Program;
  /** The stages, by their places. */
  readonly pipeline: Group;
  /** Forward passes of the evaluation, without dropout and with nothing kept. @default {false} */
  readonly evaluating?: boolean;
  /** Fills the inputs of a pass that come with the data: of a forward pass, and of a backward pass before its weights' half. */
  feed(name: SegmentName, run: Run): void;
  /** Before a pass is queued. */
  began?(name: SegmentName, run: Run): void;
  /** After it is, or where the device computes in this thread, done. */
  ended?(name: SegmentName, run: Run): void;
  /** What to do at the cuts of a pass, where there is something. */
  atCuts?(name: SegmentName, run: Run): ((cut: number) => Generator<Wait, void>) | undefined;
  /** After a forward pass, before anything else is queued. */
  done?(name: SegmentName, run: Run): Generator<Wait, void>;
  readonly observer?: StageObserver | undefined;
}

/** What a stage sent in a schedule, for comparison with what it should. */
export interface Traffic {
  readonly messages: number;
  readonly bytes: number;
}

const keyOf = ({ carries, chunk, microBatch }: Pick<Message, "carries" | "chunk" | "microBatch">) =>
  `${carries} ${chunk} ${microBatch}`;

/** Host memory for messages, by size, used again once a message is gone. Shared, for communicators in workers. */
class Staging {
  readonly #free = new Map<number, Uint8Array<SharedArrayBuffer>[]>();

  take(bytes: number): Uint8Array<SharedArrayBuffer> {
    return this.#free.get(bytes)?.pop() ?? new Uint8Array(new SharedArrayBuffer(bytes));
  }
  give(memory: Uint8Array<SharedArrayBuffer>): void {
    const free = this.#free.get(memory.length) ?? [];
    this.#free.set(memory.length, free);
    free.push(memory);
  }
}

/** Keeps the memory of messages from step to step. */
export class Executor {
  readonly #staging = new Staging();

  *run(steps: readonly ScheduleStep[], options: ExecuteOptions): Generator<Wait, Traffic> {
    const { program, pipeline, evaluating = false, observer } = options, { segments } = program.plan;
    const staging = this.#staging, frames = new Map<string, number>();
    const arrived = new Map<string, Uint8Array<SharedArrayBuffer>>();
    const coming = new Map<string, Promise<void>>(), going: Promise<void>[] = [];
    let sentMessages = 0, sentBytes = 0;

    const nameOf = ({ segment, chunk }: Pick<Run, "segment" | "chunk">): SegmentName =>
      evaluating ? `evaluate ${chunk}` : `${segment} ${chunk}`;
    const backwardOf = (chunk: number): SegmentName =>
      `backward ${chunk}` in segments ? `backward ${chunk}` : `backward input ${chunk}`;
    /** Inputs of a segment that another stage fills, in the order of its message. */
    const handedTo = (name: SegmentName) =>
      [...segments[name].inputs].filter(([input]) => input.startsWith("stage_")).map(([input, { bytes }]) => (
        { input, bytes }
      ));
    const sizeOf = (name: SegmentName) => handedTo(name).reduce((sum, { bytes }) => sum + bytes, 0);

    /** Puts what came into the inputs of a segment. */
    const deliver = (name: SegmentName, message: Parameters<typeof keyOf>[0], frame: number) => {
      const inputs = handedTo(name);
      if (inputs.length === 0) return;
      const key = keyOf(message), memory = arrived.get(key);
      if (!memory) throw new TypeError(`Cannot run ${name}: the ${key} was not received before`);
      let at = 0;
      for (const { input, bytes } of inputs) {
        program.upload(name, input, memory.subarray(at, at + bytes), frame);
        at += bytes;
      }
      arrived.delete(key);
      staging.give(memory);
    };

    const start = function* (messages: readonly Message[]): Generator<Wait, void> {
      for (const message of messages.filter(({ direction }) => direction === "receive")) {
        const { carries, chunk, peer } = message;
        const target = carries === "gradient" ? backwardOf(chunk) : nameOf({ segment: "forward", chunk });
        observer?.receiving(message);
        const memory = staging.take(sizeOf(target)), received = pipeline.receive(peer, memory);
        received.catch(() => {}); // told to whoever waits
        arrived.set(keyOf(message), memory);
        coming.set(keyOf(message), received);
      }
      const sent = messages.filter(({ direction }) => direction === "send");
      if (sent.length === 0) return;
      const sources = sent.map(({ carries, chunk, microBatch }) => {
        const name = carries === "gradient" ? backwardOf(chunk) : nameOf({ segment: "forward", chunk });
        const frame = evaluating ? 0 : frames.get(`${chunk} ${microBatch}`)!;
        return [...segments[name].passed.keys()].map((output) => program.resultRange(name, output, frame));
      });
      const ticket = program.backend.read(sources.flat());
      yield ticket;
      const read = ticket.take();
      for (const [index, message] of sent.entries()) {
        const parts = read.splice(0, sources[index]!.length);
        const memory = staging.take(parts.reduce((sum, { length }) => sum + length, 0));
        let at = 0;
        for (const part of parts) {
          memory.set(part, at);
          at += part.length;
        }
        sentMessages++;
        sentBytes += memory.length;
        observer?.sending(message);
        const gone = pipeline.send(message.peer, memory).then(() => staging.give(memory));
        gone.catch(() => {});
        going.push(gone);
      }
    };
    const finish = function* (messages: readonly Message[]): Generator<Wait, void> {
      for (const message of messages.filter(({ direction }) => direction === "receive")) {
        const key = keyOf(message), received = coming.get(key)!;
        coming.delete(key);
        yield { ready: () => received };
        observer?.waited(message);
      }
    };

    for (const step of steps) {
      if (step.kind === "exchange") {
        if (step.phase !== "wait") yield* start(step.messages);
        if (step.phase !== "start") yield* finish(step.messages);
        continue;
      }
      const { segment, chunk, microBatch, frame } = step, name = nameOf(step);
      if (segment === "forward") {
        frames.set(`${chunk} ${microBatch}`, frame);
        options.feed(name, step);
        deliver(name, { carries: "activation", chunk, microBatch }, evaluating ? 0 : frame);
      } else if (segment !== "backward weight") {
        options.feed(name, step);
        deliver(name, { carries: "gradient", chunk, microBatch }, frame);
      }
      options.began?.(name, step);
      yield* program.run(name, evaluating ? 0 : frame, options.atCuts?.(name, step));
      options.ended?.(name, step);
      observer?.ran(step);
      if (segment === "forward" && options.done) yield* options.done(name, step);
    }
    for (const gone of going) yield { ready: () => gone };
    return { messages: sentMessages, bytes: sentBytes };
  }
}
