/**
 * Records lists of commands for the device into as few objects as their order allows: lists that are submitted one after the
 * other share an encoder, and a pass where no copy lies between; copies that can wait do.
 *
 * Dawn makes each encoder, pass and command buffer with a note of 32 bytes that Deno's native interface never frees, so what
 * a step makes is what a process grows by. Yet lists that wait for each other leave the device without work, for 2 % of a
 * step: so what is likely to come is recorded ahead, while the device is busy.
 */
import { clearImmediate, setImmediate } from "node:timers"; // not the global one, by which Dawn polls

/** Bytes of a device's buffer. */
export interface Extent {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly bytes: number;
}
export interface Copy {
  readonly source: Extent;
  readonly target: Extent;
}

/** What is recorded as one, any number of times. */
export interface Recordable {
  /** All that it reads or writes. */
  readonly buffers: ReadonlySet<GPUBuffer>;
  /** The device has it done in less time than handing over takes the host, so that nothing is gained by an early start. */
  readonly brief: boolean;
  record(part: Part): void;
}

/** One encoder's worth of commands, which goes to the queue as one. */
export class Part {
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #pipeline: GPUComputePipeline | undefined;
  #copies: Copy[] = [];
  dispatches = 0;

  constructor(readonly device: GPUDevice) {}

  /** Where copies go: outside of passes. */
  get encoder(): GPUCommandEncoder {
    this.endPass();
    return this.#encoder ??= this.device.createCommandEncoder();
  }

  dispatch(
    pipeline: GPUComputePipeline,
    bindGroup: GPUBindGroup,
    workgroups: readonly [number, number, number],
    descriptor?: GPUComputePassDescriptor,
  ): void {
    this.#pass ??= this.encoder.beginComputePass(descriptor);
    if (pipeline !== this.#pipeline) this.#pass.setPipeline(this.#pipeline = pipeline);
    this.#pass.setBindGroup(0, bindGroup);
    this.#pass.dispatchWorkgroups(...workgroups);
    this.dispatches++;
  }

  endPass(): void {
    this.#pass?.end();
    this.#pass = this.#pipeline = undefined;
  }

  copy({ source, target }: Copy): void {
    this.encoder.copyBufferToBuffer(source.buffer, source.offset, target.buffer, target.offset, source.bytes);
  }

  /** Copies at the end, or before what `before` is told of. */
  copyLater(copies: readonly Copy[]): void {
    this.#copies.push(...copies);
  }

  /** What is recorded next uses these: copies of what overlaps with them can wait no longer. Without them, no copy can. */
  before(extents?: readonly Extent[]): void {
    if (this.#copies.length === 0) return;
    const waits = ({ source, target }: Copy) =>
      extents?.every((extent) => !overlap(extent, source) && !overlap(extent, target));
    if (extents && this.#copies.every(waits)) return;
    for (const copy of this.#copies) this.copy(copy);
    this.#copies = [];
  }

  /** The commands, or nothing where there are none; `atEnd` records what comes last. */
  finish(atEnd: (encoder: GPUCommandEncoder) => void): GPUCommandBuffer | undefined {
    this.before();
    if (this.#encoder === undefined) return undefined;
    this.endPass();
    atEnd(this.#encoder);
    return this.#encoder.finish();
  }
}

/** What is expected from here to the next read-back, recorded ahead. */
interface Forecast {
  readonly part: Part;
  readonly lists: readonly Recordable[];
  /** How many of them have come. */
  come: number;
}

/**
 * The first list after a read-back goes to the queue at once, as the device has nothing to do, unless it is brief: then it
 * waits for the next one. Those gather until there are so many dispatches, so that the device has enough while the rest is
 * recorded, and that until there are more.
 */
const someDispatches = 80, manyDispatches = 1024;

/** A round, from one read-back to the next, is recorded ahead after so many alike; misses raise that, hits lower it again. */
const leastAlike = 2, mostAlike = 64;
const mostListsOfRound = 256;

export class Recorder {
  #part: Part;
  #forecast: Forecast | undefined;
  /** Lists that are not handed over: those of the forecast that have come, or what the part holds. */
  #waiting: Recordable[] = [];
  #most = 0;
  #atTurnsEnd: ReturnType<typeof setImmediate> | undefined;
  /** Lists of this round, but for one that went to the queue at once, and of the last one. */
  #round: Recordable[] = [];
  #lastRound: readonly Recordable[] = [];
  /** This round cannot serve as a forecast: it went to the queue in pieces, or is too long. */
  #broken = false;
  #alike = 0;
  #enough = leastAlike;
  #looksAhead: boolean;
  #recordSeconds = 0;
  #queueSeconds = 0;

  /**
   * @param atEnd records what comes last, before a part is handed over
   * @param gathers whether lists wait for each other at all: where objects cost no memory, each is quickest alone
   */
  constructor(
    readonly device: GPUDevice,
    readonly atEnd: (encoder: GPUCommandEncoder) => void,
    readonly gathers = true,
  ) {
    this.#part = new Part(device);
    this.#looksAhead = gathers;
  }

  /** Seconds so far of recording, and of handing over. */
  get seconds(): { readonly record: number; readonly queue: number } {
    return { record: this.#recordSeconds, queue: this.#queueSeconds };
  }

  /** Hands everything over. From here on lists are recorded when they come, or, as at first, ahead where that is likely to serve. */
  lookAhead(ahead: boolean): void {
    this.flush();
    this.#drop();
    this.#looksAhead = ahead && this.gathers;
  }

  /** The list goes to the queue when enough has gathered, or by the turn's end; a brief first one when another has come. */
  add(list: Recordable): void {
    const first = this.#most === 0;
    if (first && !(this.gathers && list.brief)) {
      this.#record(list, this.#part);
      return this.#handOver(this.gathers ? someDispatches : 0);
    }
    if (this.#round.length === mostListsOfRound) this.#broken = true;
    else this.#round.push(list);
    if (this.#forecast?.lists[this.#forecast.come] === list) this.#forecast.come++;
    else {
      this.#miss();
      this.#record(list, this.#part);
    }
    this.#waiting.push(list);
    if (first) this.#most = someDispatches;
    else if (this.#part.dispatches >= this.#most) this.#handOver(manyDispatches);
    else this.#atTurnsEnd ??= setImmediate(() => this.flush());
  }

  /** Whether what is not handed over yet reads or writes this buffer. */
  uses(buffer: GPUBuffer): boolean {
    return this.#waiting.some(({ buffers }) => buffers.has(buffer));
  }

  /** The buffer is about to be destroyed: what uses it and has come is handed over, and what may come is forgotten. */
  release(buffer: GPUBuffer): void {
    if (this.uses(buffer)) this.flush();
    if ([...this.#lastRound, ...this.#round].some(({ buffers }) => buffers.has(buffer))) this.#drop();
  }

  /** Hands everything over to the queue. */
  flush(): void {
    if (this.#waiting.length === 0) return;
    this.#broken = true;
    this.#settle();
    this.#handOver(someDispatches);
  }

  /** Hands everything over, and copies for a read-back behind it, with which a round ends. */
  flushWith(copies: (encoder: GPUCommandEncoder) => void): void {
    const begun = this.#most > 0;
    if (begun) this.#settle();
    this.#part.before();
    copies(this.#part.encoder);
    this.#handOver(0);
    if (begun) this.#endRound();
  }

  /** Drops what is not handed over. */
  [Symbol.dispose](): void {
    this.#waiting = [];
    this.#drop();
    this.#clear();
    this.#looksAhead = false;
  }

  #record(list: Recordable, part: Part): void {
    const begun = performance.now();
    list.record(part);
    this.#recordSeconds += (performance.now() - begun) / 1000;
  }

  #endRound(): void {
    const round = this.#round, last = this.#lastRound;
    const alike = !this.#broken && round.length === last.length && round.every((list, index) => list === last[index]);
    this.#alike = alike ? this.#alike + 1 : 0;
    this.#lastRound = this.#broken ? [] : round;
    this.#round = [];
    this.#broken = false;
    // Not before the caller has asked for the answer.
    if (this.#looksAhead && this.#alike >= this.#enough) queueMicrotask(() => this.#expect(round));
  }

  /** Records these ahead, unless the next round has begun or something has changed. */
  #expect(lists: readonly Recordable[]): void {
    if (lists.length === 0 || lists !== this.#lastRound || this.#most > 0 || this.#forecast) return;
    const part = new Part(this.device);
    for (const list of lists) this.#record(list, part);
    this.#forecast = { part, lists, come: 0 };
  }

  /** Has what waits in the current part. */
  #settle(): void {
    if (this.#forecast?.come !== this.#forecast?.lists.length) return this.#miss();
    if (this.#forecast === undefined) return;
    this.#part = this.#forecast.part;
    this.#forecast = undefined;
    this.#enough = Math.max(leastAlike, this.#enough - 1);
  }

  /** Something else comes than was expected. */
  #miss(): void {
    if (this.#forecast === undefined) return;
    this.#alike = 0;
    this.#enough = Math.min(mostAlike, 2 * this.#enough);
    this.#forget();
  }

  /** Nothing is expected, and this round serves as no forecast. */
  #drop(): void {
    this.#forget();
    this.#lastRound = [];
    this.#broken = true;
  }

  /** Without the forecast, lists of it that have come are recorded after all. */
  #forget(): void {
    if (this.#forecast === undefined) return;
    this.#forecast = undefined;
    for (const list of this.#waiting) this.#record(list, this.#part);
  }

  /** The next part goes to the queue after `most` dispatches. */
  #handOver(most: number): void {
    const begun = performance.now(), commands = this.#part.finish(this.atEnd);
    this.#clear();
    this.#most = most;
    if (commands !== undefined) this.device.queue.submit([commands]);
    this.#queueSeconds += (performance.now() - begun) / 1000;
  }

  #clear(): void {
    if (this.#atTurnsEnd !== undefined) clearImmediate(this.#atTurnsEnd);
    this.#atTurnsEnd = undefined;
    this.#part = new Part(this.device);
    this.#waiting = [];
  }
}

const overlap = (a: Extent, b: Extent): boolean =>
  a.buffer === b.buffer && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
