/**
 * Records work for the device into as few objects as its order allows: lists that are submitted one after the other share
 * an encoder, and a pass where no copy lies between; copies that can wait do.
 *
 * For speed that is worth nothing: on an H200 steps of `float32` through Deno were 2 % slower for it. But Dawn makes each encoder, pass and command buffer with a note of 32 bytes that Deno's
 * native interface never frees, so that what a step makes is what a process grows by.
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

/**
 * The first list after a read-back goes to the queue at once, as the device has nothing to do. The next ones gather until
 * there are so many dispatches, so that it has enough while the rest is recorded, and that until there are more.
 */
const someDispatches = 128, manyDispatches = 1024;

export class Recorder {
  #encoder: GPUCommandEncoder | undefined;
  #pass: GPUComputePassEncoder | undefined;
  #pipeline: GPUComputePipeline | undefined;
  #dispatches = 0;
  #most = 0;
  #copies: Copy[] = [];
  /** Buffers of what is not handed over. */
  #buffers: ReadonlySet<GPUBuffer>[] = [];
  #atTurnsEnd: ReturnType<typeof setImmediate> | undefined;
  #seconds = 0;

  /**
   * @param atEnd records what comes last, before a part is handed over
   * @param gathers whether lists wait for each other at all: where objects cost no memory, each is quickest alone
   */
  constructor(
    readonly device: GPUDevice,
    readonly atEnd: (encoder: GPUCommandEncoder) => void,
    readonly gathers = true,
  ) {}

  /** Seconds of handing over so far. */
  get seconds(): number {
    return this.#seconds;
  }

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
    this.#dispatches++;
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

  /** A list with these buffers is recorded: it goes to the queue when enough has gathered, or by the turn's end. */
  close(buffers: ReadonlySet<GPUBuffer>): void {
    this.#buffers.push(buffers);
    if (!this.gathers) this.flush();
    else if (this.#dispatches >= this.#most) this.flush(this.#most === 0 ? someDispatches : manyDispatches);
    else this.#atTurnsEnd ??= setImmediate(() => this.flush());
  }

  /** Whether what is not handed over yet reads or writes this buffer. */
  uses(buffer: GPUBuffer): boolean {
    return this.#buffers.some((buffers) => buffers.has(buffer));
  }

  /** Hands everything over to the queue. The next part goes there after `most` dispatches. */
  flush(most = someDispatches): void {
    this.#most = most;
    this.before();
    if (this.#encoder === undefined) return;
    const begun = performance.now();
    this.endPass();
    this.atEnd(this.#encoder);
    const commands = this.#encoder.finish();
    this.#forget();
    this.device.queue.submit([commands]);
    this.#seconds += (performance.now() - begun) / 1000;
  }

  /** Drops what is not handed over. */
  [Symbol.dispose](): void {
    this.#copies = [];
    this.#forget();
  }

  #forget(): void {
    if (this.#atTurnsEnd !== undefined) clearImmediate(this.#atTurnsEnd);
    this.#encoder =
      this.#pass =
      this.#pipeline =
      this.#atTurnsEnd =
        undefined;
    this.#dispatches = 0;
    this.#buffers = [];
  }
}

const overlap = (a: Extent, b: Extent): boolean =>
  a.buffer === b.buffer && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes;
