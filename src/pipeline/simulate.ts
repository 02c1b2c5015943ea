/**
 * Plays the schedules of all stages against each other on a clock that moves only when told: nothing is computed, every
 * pass takes as long as it is said to take, every message as long as its link needs. What comes out is a timeline.
 *
 * A stage waits for what it receives, never for a reader of what it sent (`Exchange`); messages of one direction between
 * two stages follow each other on one link.
 */
import type { Exchange, Message, Pass, Run, ScheduleStep } from "./schedule.ts";

export interface Costs {
  /** Seconds that a pass of a chunk takes on a stage. */
  run(segment: Pass, at: { readonly stage: number; readonly chunk: number }): number;
  /** Seconds that a message occupies its link. @default {0} */
  transfer?(message: Message, stage: number): number;
  /** Seconds from the end of a transfer to its arrival. @default {0} */
  readonly latency?: number;
}

/** One pass of a stage, in seconds since the step began. */
export interface TimedRun extends Run {
  readonly stage: number;
  readonly start: number;
  readonly end: number;
}

/** One message, from when its stage gave it away to when it was there. */
export interface TimedMessage extends Message {
  readonly stage: number;
  readonly start: number;
  readonly end: number;
}

export interface Timeline {
  readonly stages: number;
  /** When the last stage was done. */
  readonly seconds: number;
  readonly runs: readonly TimedRun[];
  readonly messages: readonly TimedMessage[];
  /** Seconds that each stage did not compute. */
  readonly idle: readonly number[];
  /** Share of the stages' time that was idle. */
  readonly bubble: number;
}

/** The schedules of the stages wait for each other in a ring, or for something that is never sent. */
export class DeadlockError extends Error {
  override readonly name = "DeadlockError";
}

const keyOf = (from: number, to: number, { carries, microBatch }: Message) => `${from} ${to} ${carries} ${microBatch}`;
const describe = ({ direction, carries, microBatch, peer }: Message) =>
  `${direction === "send" ? "sends" : "waits for"} the ${carries} of micro-batch ${microBatch} ` +
  `${direction === "send" ? "to" : "from"} stage ${peer}`;

/**
 * @param schedules one per stage
 * @throws {DeadlockError} when no stage can go on, naming what each waits for
 * @throws {RangeError} when messages between two stages are received in another order than they are sent
 *
 * @example
 * ```ts
 * import { oneForwardOneBackward } from "./one_forward_one_backward.ts";
 * import { simulate } from "./simulate.ts";
 * const schedules = [0, 1, 2, 3].map((stage) => oneForwardOneBackward({ stages: 4, microBatches: 8 }, stage));
 * const { seconds } = simulate(schedules, { run: (segment) => segment === "forward" ? 1 : 2 });
 * console.assert(seconds === 8 * 3 + 3 * 3); // (stages - 1) times a forward and a backward pass is the bubble
 * ```
 */
export function simulate(schedules: readonly (readonly ScheduleStep[])[], costs: Costs): Timeline {
  const { latency = 0 } = costs;
  const clocks = schedules.map(() => 0), next = schedules.map(() => 0);
  /** What was given to a link and not yet taken, in order, by direction between two stages. */
  const links = new Map<string, { free: number; readonly waiting: { key: string; arrival: number }[] }>();
  const runs: TimedRun[] = [], messages: TimedMessage[] = [];
  const linkOf = (from: number, to: number) => {
    const name = `${from} ${to}`, known = links.get(name);
    if (known) return known;
    const link = { free: 0, waiting: [] };
    links.set(name, link);
    return link;
  };

  const send = (stage: number, message: Message) => {
    const link = linkOf(stage, message.peer), start = Math.max(clocks[stage]!, link.free);
    link.free = start + (costs.transfer?.(message, stage) ?? 0);
    const arrival = link.free + latency;
    link.waiting.push({ key: keyOf(stage, message.peer, message), arrival });
    messages.push({ ...message, stage, start: clocks[stage]!, end: arrival });
  };
  /** Whether all that an exchange receives was sent; then it is taken. */
  const receive = (stage: number, { messages }: Exchange): boolean => {
    const received = messages.filter(({ direction }) => direction === "receive");
    const taken = new Map<number, number>();
    for (const message of received) {
      const { waiting } = linkOf(message.peer, stage), place = taken.get(message.peer) ?? 0;
      const first = waiting[place], key = keyOf(message.peer, stage, message);
      if (!first) return false;
      if (first.key !== key) {
        throw new RangeError(
          `Cannot play these schedules: stage ${stage} ${describe(message)}, which sent something else first`,
        );
      }
      taken.set(message.peer, place + 1);
    }
    for (const { peer } of received) {
      clocks[stage] = Math.max(clocks[stage]!, linkOf(peer, stage).waiting.shift()!.arrival);
    }
    return true;
  };
  /** Starts of exchanges are done once, though what they wait for may be asked for several times. */
  const begun = new Set<Exchange>();

  for (let moved = true; moved;) {
    moved = false;
    schedules.forEach((steps, stage) => {
      for (; next[stage]! < steps.length; next[stage]!++, moved = true) {
        const step = steps[next[stage]!]!;
        if (step.kind === "run") {
          const start = clocks[stage]!;
          clocks[stage] = start + costs.run(step.segment, { stage, chunk: step.chunk });
          runs.push({ ...step, stage, start, end: clocks[stage]! });
          continue;
        }
        if (step.phase !== "wait" && !begun.has(step)) {
          begun.add(step);
          step.messages.filter(({ direction }) => direction === "send").forEach((message) => send(stage, message));
          moved = true;
        }
        if (step.phase !== "start" && !receive(stage, step)) break;
      }
    });
  }

  const stuck = schedules.flatMap((steps, stage) => {
    const step = steps[next[stage]!];
    if (step?.kind !== "exchange") return [];
    return [
      `stage ${stage} ${step.messages.filter(({ direction }) => direction === "receive").map(describe).join(", ")}`,
    ];
  });
  if (stuck.length > 0) throw new DeadlockError(`Cannot play these schedules to their end: ${stuck.join("; ")}`);

  return timelineOf(schedules.length, { seconds: Math.max(0, ...clocks), runs, messages });
}

/** A timeline of what so many stages did; the order in which it is told does not matter. */
export function timelineOf(
  stages: number,
  { seconds, ...told }: Pick<Timeline, "seconds" | "runs" | "messages">,
): Timeline {
  const inOrder = <T extends { readonly start: number; readonly stage: number }>(all: readonly T[]) =>
    all.toSorted((a, b) => a.start - b.start || a.stage - b.stage);
  const runs = inOrder(told.runs), messages = inOrder(told.messages);
  const idle = Array.from(
    { length: stages },
    (_, stage) =>
      Math.max(0, runs.reduce((left, run) => run.stage === stage ? left - (run.end - run.start) : left, seconds)),
  );
  const bubble = seconds === 0 ? 0 : idle.reduce((sum, each) => sum + each, 0) / (seconds * stages);
  return { stages, seconds, runs, messages, idle, bubble };
}
