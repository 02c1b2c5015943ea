/**
 * A clock that moves only when told, for stages that really run: each pass that a stage executes takes the seconds it is
 * said to take, and each message carries, over the stages' own channel, the time at which it arrives. What comes out is the
 * timeline of that run, as the simulator (`src/pipeline/simulate.ts`) makes one of schedules alone; the two must be the same.
 */
import type { Group } from "../src/comm/collectives/communicator.ts";
import type { Message, Run } from "../src/pipeline/schedule.ts";
import { type Costs, type TimedMessage, type TimedRun, type Timeline, timelineOf } from "../src/pipeline/simulate.ts";
import type { StageObserver } from "../src/train/execute.ts";

const keyOf = ({ peer, carries, chunk, microBatch }: Message) => `${peer} ${carries} ${chunk} ${microBatch}`;

/** The clock of one stage. */
export class StageClock implements StageObserver {
  now = 0;
  readonly runs: TimedRun[] = [];
  readonly messages: TimedMessage[] = [];
  /** When the link to a peer is free again. */
  readonly #free = new Map<number, number>();
  /** Arrivals of messages that were announced and are not yet sent, by peer. */
  readonly #leaving = new Map<number, number[]>();
  /** Messages that were announced and not yet asked for, by peer; when those arrived that were not yet waited for. */
  readonly #coming = new Map<number, string[]>();
  readonly #arrived = new Map<string, number>();

  constructor(readonly stage: number, readonly costs: Costs) {}

  ran(run: Run): void {
    const start = this.now;
    this.now += this.costs.run(run.segment, { stage: this.stage, chunk: run.chunk });
    this.runs.push({ ...run, stage: this.stage, start, end: this.now });
  }

  sending(message: Message): void {
    const { peer } = message,
      free = Math.max(this.now, this.#free.get(peer) ?? 0) +
        (this.costs.transfer?.(message, this.stage) ?? 0);
    this.#free.set(peer, free);
    const end = free + (this.costs.latency ?? 0);
    this.#leaving.set(peer, [...this.#leaving.get(peer) ?? [], end]);
    this.messages.push({ ...message, stage: this.stage, start: this.now, end });
  }

  receiving(message: Message): void {
    this.#coming.set(message.peer, [...this.#coming.get(message.peer) ?? [], keyOf(message)]);
  }

  /** @throws {TypeError} for a message that was not there, or carried no time */
  waited(message: Message): void {
    const key = keyOf(message), arrival = this.#arrived.get(key);
    if (arrival === undefined) throw new TypeError(`Cannot wait for ${key} on stage ${this.stage}: it brought no time`);
    this.#arrived.delete(key);
    this.now = Math.max(this.now, arrival);
  }

  /** The stages' group, each of whose messages is led by the time of its arrival. All stages must use theirs. */
  carrying(group: Group): Group {
    return {
      ...group,
      send: async (to, data) => {
        const arrival = this.#leaving.get(to)?.shift() ?? this.now;
        const led = group.send(to, new Uint8Array(Float64Array.of(arrival).buffer));
        await Promise.all([led, group.send(to, data)]);
      },
      receive: async (from, into) => {
        const key = this.#coming.get(from)?.shift(), time = new Float64Array(1);
        const led = group.receive(from, new Uint8Array(time.buffer)), came = group.receive(from, into);
        await Promise.all([led, came]);
        if (key !== undefined) this.#arrived.set(key, time[0]!);
      },
    };
  }
}

/** What the stages did, on one clock. */
export function timelineOfClocks(clocks: readonly StageClock[]): Timeline {
  return timelineOf(clocks.length, {
    seconds: Math.max(0, ...clocks.map(({ now }) => now)),
    runs: clocks.flatMap(({ runs }) => runs),
    messages: clocks.flatMap(({ messages }) => messages),
  });
}
