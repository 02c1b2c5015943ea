/**
 * What a rank does at once, on three clocks: its device, its own thread, and its communicator. Work is queued on the device
 * and goes on while the thread does something else; a read-back waits for all that was queued; collectives follow each other
 * on the communicator. It is played as the executor plays it (`src/graph/program.ts`, `src/optimizer/synchronize.ts`), so
 * what overlaps in a run overlaps here, and nothing else does.
 */
export class RankClock {
  /** When the device has done all that was queued. */
  device = 0;
  /** When the rank's thread has done all that it was asked. */
  thread = 0;
  /** When the communicator has finished the last collective. */
  communicator = 0;

  /** Queues work on the device. */
  queue(seconds: number): void {
    this.device = Math.max(this.device, this.thread) + seconds;
  }

  /** The thread waits for all that is queued, and for what comes back. */
  readBack(seconds: number): void {
    this.thread = Math.max(this.thread, this.device) + seconds;
  }

  /** The thread works, and the device goes on. */
  work(seconds: number): void {
    this.thread += seconds;
  }

  /** Hands a collective over. @returns when it will be done */
  collective(seconds: number): number {
    return this.communicator = Math.max(this.communicator, this.thread) + seconds;
  }

  /** The thread waits until then. */
  wait(until: number): void {
    this.thread = Math.max(this.thread, until);
  }

  /** When thread and device are done; a collective that nobody waited for goes on. */
  get now(): number {
    return Math.max(this.device, this.thread);
  }
}
