/**
 * AdamW on the device: squared gradient norms and a fused update of parameters and moments, one dispatch each for every
 * run of what this rank updates: without other ranks, for every arena. All scalars of an update sit in one small buffer that the host writes.
 */
import { adamw, adamwScalars } from "../../kernels/adamw/mod.ts";
import { squaredNorm } from "../../kernels/reduce/mod.ts";
import { isHalf } from "../../kernels/host.ts";
import { elementBytes } from "../../kernels/kernel.ts";
import type { Command, CommandList, DeviceBuffer, Range } from "../backend/backend.ts";
import type { StateLayout } from "../graph/optimizer_state.ts";
import type { Program } from "../graph/program.ts";

export interface AdamWUpdate {
  readonly learningRate: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
  /** Number of this update, from 1. */
  readonly updates: number;
  /** Factor on every gradient: clipping and the inverse of the loss scale. */
  readonly gradientScale: number;
}

/** Bytes of the workspace of the squared norm of a run. */
const scratchBytes = (runBytes: number): number[] =>
  squaredNorm({ length: runBytes / 4 }).operands.filter(({ access }) => access === "scratch")
    .map(({ length, type }) => Math.max(256, length * elementBytes[type]));

/** Bytes that the optimizer takes on the device beside the moments. */
export const adamwBytes = ({ runs }: StateLayout): number =>
  256 + 256 * Math.max(1, runs.length) +
  runs.flatMap(({ bytes }) => scratchBytes(bytes)).reduce((sum, bytes) => sum + bytes, 0);

export class AdamW implements Disposable {
  readonly #program: Program;
  readonly #scalars: DeviceBuffer;
  /** One number per run, each at its own aligned offset. */
  readonly #norms: DeviceBuffer;
  readonly #scratch: DeviceBuffer[] = [];
  #normList!: CommandList;
  #updateList!: CommandList;

  private constructor(program: Program) {
    this.#program = program;
    this.#scalars = program.backend.allocate(256, "optimizer scalars");
    this.#norms = program.backend.allocate(256 * Math.max(1, program.plan.state.runs.length), "squared norms");
  }

  /** Allocates and compiles everything. Frees what it took when it fails. */
  static async create(program: Program): Promise<AdamW> {
    const optimizer = new AdamW(program);
    try {
      await optimizer.#prepare();
      return optimizer;
    } catch (error) {
      optimizer[Symbol.dispose]();
      throw error;
    }
  }

  async #prepare(): Promise<void> {
    const program = this.#program;
    const { backend, arenas } = program;
    const norms: Command[] = [], updates: Command[] = [];
    const { modelType, parameters, state: { runs, places } } = program.plan;
    runs.forEach(({ gradient, state, bytes }, run) => {
      const range = (buffers: readonly DeviceBuffer[], { arena, offset }: typeof state): Range => (
        { buffer: buffers[arena]!, offset, bytes }
      );
      const gradients = range(arenas.gradient, gradient);
      const length = bytes / 4;
      const norm = squaredNorm({ length });
      const scratch = scratchBytes(bytes).map((size) => backend.allocate(size, "squared norm workspace"));
      this.#scratch.push(...scratch);
      const ranges = norm.operands.map(({ access, length, type }) => {
        if (access === "read") return gradients;
        if (access === "write") return this.normRanges[run]!;
        return { buffer: scratch.shift()!, offset: 0, bytes: length * elementBytes[type] };
      });
      norms.push({ kind: "dispatch", kernel: norm, ranges });
      updates.push({
        kind: "dispatch",
        kernel: adamw({ length, ...(modelType && { modelType }) }),
        ranges: [
          modelType ? range(arenas.master, state) : range(arenas.parameter, gradient),
          gradients,
          range(arenas.moment1, state),
          range(arenas.moment2, state),
          { buffer: this.#scalars, offset: 0, bytes: 32 },
          ...(modelType
            ? [{ buffer: arenas.parameter[gradient.arena]!, offset: gradient.offset / 2, bytes: bytes / 2 }]
            : []),
        ],
      });
    });
    const exact = new Set(parameters.filter(({ read: { type } }) => !isHalf(type)).map(({ name }) => name));
    for (const part of modelType ? places : []) {
      if (!exact.has(part.name)) continue;
      updates.push({ kind: "copy", source: program.partRange("parameter", part), target: program.storedRange(part) });
    }
    this.#normList = await backend.prepare(norms);
    this.#updateList = await backend.prepare(updates);
  }

  /** Where the squared norms lie after `norm()`: one `f32` per run. */
  get normRanges(): Range[] {
    return this.#program.plan.state.runs.map((_, run) => ({ buffer: this.#norms, offset: 256 * run, bytes: 4 }));
  }

  /** Queues the squared norms of the gradients of what this rank updates. */
  norm(): void {
    this.#program.backend.submit(this.#normList);
  }

  /** Queues one update. */
  update({ learningRate, beta1, beta2, epsilon, weightDecay, updates, gradientScale }: AdamWUpdate): void {
    const scalars = adamwScalars({
      lr: learningRate,
      beta1,
      beta2,
      eps: epsilon,
      weightDecay,
      step: updates,
      gradientScale,
    });
    this.#program.backend.upload({ buffer: this.#scalars, offset: 0, bytes: scalars.byteLength }, scalars);
    this.#program.backend.submit(this.#updateList);
    this.#program.parametersChanged();
  }

  [Symbol.dispose](): void {
    [this.#scalars, this.#norms, ...this.#scratch].forEach((buffer) => this.#program.backend.release(buffer));
  }
}
