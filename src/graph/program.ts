/**
 * A plan given memory on a backend: buffers for every place, command lists for every segment and frame, made once.
 * Nothing is allocated or compiled inside a step.
 */
import type { Backend, CommandList, DeviceBuffer, Range, ReadTicket } from "../backend/backend.ts";
import type { Instruction, ParameterPlace, Place, Plan, Segment } from "./plan.ts";

/** Arenas that mirror the parameters: one buffer each per arena of the plan. */
export type ArenaKind = "parameter" | "gradient" | "moment1" | "moment2";

export interface ProgramOptions {
  /** Micro-batches in flight at once. @default {1} */
  readonly frames?: number;
  /** Most micro-batches of one step whose outputs are kept for the host. */
  readonly microBatches: number;
}

export class Program implements Disposable {
  readonly arenas: Readonly<Record<ArenaKind, readonly DeviceBuffer[]>>;
  readonly #parameters: ReadonlyMap<string, ParameterPlace>;
  readonly #constants: readonly DeviceBuffer[];
  readonly #frames: readonly (readonly DeviceBuffer[])[];
  readonly #workspace: readonly DeviceBuffer[];
  /** One buffer per output, holding every micro-batch's part at a multiple of its stride. */
  readonly #outputs = new Map<string, { buffer: DeviceBuffer; stride: number; bytes: number }>();
  /** All that was allocated. */
  readonly #buffers: DeviceBuffer[] = [];
  readonly #lists = new Map<string, CommandList>();

  private constructor(readonly backend: Backend, readonly plan: Plan, { frames = 1, microBatches }: ProgramOptions) {
    const allocate = (bytes: number, label: string) => {
      const buffer = backend.allocate(bytes, label);
      this.#buffers.push(buffer);
      return buffer;
    };
    const slots = (sizes: readonly number[], label: string) =>
      sizes.map((bytes, slot) => allocate(bytes, `${label} ${slot}`));
    const arenas = (kind: ArenaKind) => slots(plan.arenas, kind);
    try {
      this.arenas = {
        parameter: arenas("parameter"),
        gradient: arenas("gradient"),
        moment1: arenas("moment1"),
        moment2: arenas("moment2"),
      };
      this.#parameters = new Map(plan.parameters.map((place) => [place.name, place]));
      this.#constants = plan.constants.map((data, index) => {
        const buffer = allocate(data.byteLength, `constant ${index}`);
        backend.upload({ buffer, offset: 0, bytes: data.byteLength }, data);
        return buffer;
      });
      this.#frames = Array.from({ length: frames }, (_, frame) => slots(plan.frame, `frame ${frame} slot`));
      this.#workspace = slots(plan.workspace, "workspace");
      for (const [name, { bytes }] of plan.segments.forward.outputs) {
        const stride = Math.ceil(bytes / 256) * 256;
        this.#outputs.set(name, { buffer: allocate(stride * microBatches, `output ${name}`), stride, bytes });
      }
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Allocates and compiles everything. Frees what it took when it fails. */
  static async create(backend: Backend, plan: Plan, options: ProgramOptions): Promise<Program> {
    const program = new Program(backend, plan, options);
    try {
      const { forward, backward, evaluate } = plan.segments;
      for (let frame = 0; frame < (options.frames ?? 1); frame++) {
        await program.#prepare(`forward ${frame}`, forward, frame);
        await program.#prepare(`backward ${frame}`, backward, frame);
        for (let microBatch = 0; microBatch < options.microBatches; microBatch++) {
          await program.#prepareOutputs(frame, microBatch);
        }
      }
      await program.#prepare("evaluate 0", evaluate, 0);
      const clear = program.arenas.gradient.map((buffer) => (
        { kind: "clear", target: { buffer, offset: 0, bytes: buffer.bytes } } as const
      ));
      program.#lists.set("clear", await backend.prepare(clear));
      return program;
    } catch (error) {
      program[Symbol.dispose]();
      throw error;
    }
  }

  async #prepare(name: string, segment: Segment, frame: number): Promise<void> {
    const commands = segment.instructions.map((instruction: Instruction) =>
      instruction.kind === "copy"
        ? {
          kind: "copy" as const,
          source: this.#range(instruction.source, frame),
          target: this.#range(instruction.target, frame),
        }
        : {
          kind: "dispatch" as const,
          kernel: instruction.kernel,
          ranges: instruction.places.map((place) => this.#range(place, frame)),
          label: instruction.label,
        }
    );
    this.#lists.set(name, await this.backend.prepare(commands));
  }

  async #prepareOutputs(frame: number, microBatch: number): Promise<void> {
    const commands = [...this.plan.segments.forward.outputs].map(([name, place]) => ({
      kind: "copy" as const,
      source: this.#range(place, frame),
      target: this.outputRange(name, microBatch),
    }));
    this.#lists.set(`outputs ${frame} ${microBatch}`, await this.backend.prepare(commands));
  }

  #range({ space, slot, offset, bytes }: Place, frame: number): Range {
    const buffer = space === "frame"
      ? this.#frames[frame]![slot]!
      : space === "workspace"
      ? this.#workspace[slot]!
      : space === "constant"
      ? this.#constants[slot]!
      : this.arenas[space][slot]!;
    return { buffer, offset, bytes };
  }

  /** Fills an input of a segment. */
  upload(segment: "forward" | "evaluate", name: string, data: ArrayBufferView, frame = 0): void {
    const place = this.plan.segments[segment].inputs.get(name);
    if (!place) throw new RangeError(`Cannot upload ${name}: the model has no such input`);
    if (data.byteLength !== place.bytes) {
      throw new RangeError(`Cannot upload ${name}: it takes ${place.bytes} bytes, got ${data.byteLength}`);
    }
    this.backend.upload(this.#range(place, frame), data);
  }

  run(segment: "forward" | "backward" | "evaluate", frame = 0): void {
    this.backend.submit(this.#lists.get(`${segment} ${frame}`)!);
  }

  /** Copies a frame's outputs to where they stay until the host reads them, at the step's end. */
  keepOutputs(microBatch: number, frame = 0): void {
    const list = this.#lists.get(`outputs ${frame} ${microBatch}`);
    if (!list) throw new RangeError(`Cannot keep outputs of micro-batch ${microBatch}: more than were planned for`);
    this.backend.submit(list);
  }

  zeroGradients(): void {
    this.backend.submit(this.#lists.get("clear")!);
  }

  /** Where the kept outputs of a micro-batch lie. */
  outputRange(name: string, microBatch: number): Range {
    const output = this.#outputs.get(name);
    if (!output) throw new RangeError(`Cannot read ${name}: the model has no such output`);
    return { buffer: output.buffer, offset: microBatch * output.stride, bytes: output.bytes };
  }

  /** Where the outputs of the evaluation pass lie until the next pass of any kind. */
  evaluationRange(name: string): Range {
    const place = this.plan.segments.evaluate.outputs.get(name);
    if (!place) throw new RangeError(`Cannot read ${name}: the evaluation pass has no such output`);
    return this.#range(place, 0);
  }

  /** Range of one parameter in an arena of the given kind. */
  parameterRange(kind: ArenaKind, name: string): Range {
    const place = this.#parameters.get(name);
    if (!place) throw new RangeError(`Cannot find parameter ${name}: the model has no such parameter`);
    return { buffer: this.arenas[kind][place.arena]!, offset: place.offset, bytes: place.bytes };
  }

  writeParameter(kind: ArenaKind, name: string, data: Float32Array): void {
    const range = this.parameterRange(kind, name);
    if (data.byteLength !== range.bytes) {
      throw new RangeError(`Cannot write ${kind} ${name}: it holds ${range.bytes / 4} numbers, got ${data.length}`);
    }
    this.backend.upload(range, data);
  }

  /** Reads one parameter's tensor of the given kind, flat. */
  async readParameter(kind: ArenaKind, name: string): Promise<Float32Array<ArrayBuffer>> {
    const [bytes] = await settle(this.backend.read([this.parameterRange(kind, name)]));
    return new Float32Array(bytes!.buffer, bytes!.byteOffset, bytes!.byteLength / 4);
  }

  [Symbol.dispose](): void {
    this.#buffers.splice(0).forEach((buffer) => this.backend.release(buffer));
    this.#lists.clear();
  }
}

/** Waits for a read-back outside the hot path. */
export async function settle(ticket: ReadTicket): Promise<Uint8Array<ArrayBuffer>[]> {
  await ticket.ready();
  return ticket.take();
}
