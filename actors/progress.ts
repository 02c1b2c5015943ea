/** The rank's progress word: where it is, in memory shared with its communicator, since its own thread blocks on the GPU. */

export const phases = { start: 0, initialise: 1, data: 2, step: 3, evaluate: 4, save: 5 } as const;
const phaseNames = Object.keys(phases) as readonly (keyof typeof phases)[];

/** Layout of the shared words: changes, phase, step. */
const CHANGES = 0, PHASE = 1, STEP = 2;

export class Progress {
  readonly #words: Int32Array;

  constructor(readonly memory: SharedArrayBuffer = new SharedArrayBuffer(12)) {
    this.#words = new Int32Array(memory);
  }

  enter(phase: number, step: number): void {
    Atomics.store(this.#words, STEP, step);
    Atomics.store(this.#words, PHASE, phase);
    Atomics.add(this.#words, CHANGES, 1);
  }

  read(): { changes: number; phase: string; step: number } {
    return {
      changes: Atomics.load(this.#words, CHANGES),
      phase: phaseNames[Atomics.load(this.#words, PHASE)]!,
      step: Atomics.load(this.#words, STEP),
    };
  }
}
