/**
 * A plan given memory on a backend: buffers for every place, command lists for every segment and frame, made once.
 * Nothing is allocated or compiled inside a step.
 *
 * A segment without collectives is one command list. Where there are some, they cut it into several, and what lies
 * between is done by the host (`collect.ts`). So a segment runs as a generator that yields at every wait: a whole world
 * of ranks can run in one thread.
 */
import { encode, isHalf } from "../../kernels/host.ts";
import { elementBytes } from "../../kernels/kernel.ts";
import type { Backend, Command, CommandList, DeviceBuffer, Range, ReadTicket } from "../backend/backend.ts";
import { type CollectiveRanges, Collector, type GroupOf, type Traffic } from "./collect.ts";
import type { ParameterPart, StatePlace } from "./optimizer_state.ts";
import { beginnings, isWeightGather, type Prefetches, WeightGathers } from "./weight_gathers.ts";
import {
  type CollectiveInstruction,
  framesOf,
  type Instruction,
  type ParameterPlace,
  type Place,
  type Plan,
  type Segment,
  type SegmentName,
} from "./plan.ts";

/** `float32` tensors, one a parameter: the parameter itself, and what mirrors it. */
export type TensorKind = "parameter" | "gradient" | "moment1" | "moment2";
/** `parameter`: as the passes read them. `master`, where that is in a half type, and moments: of what this rank updates. */
type ArenaKind = TensorKind | "master";

/** Something a generator of steps waits for. */
export interface Wait {
  ready(): Promise<unknown>;
}

/**
 * A turn of the event loop, in which messages to and from other threads leave and come. To be waited for after something
 * was sent, where what comes next may block the thread: a read-back does, until the device is through.
 */
export const messagesLeave: Wait = { ready: () => new Promise((resolve) => setImmediate(resolve)) };

export interface ProgramOptions {
  /** Micro-batches in flight at once, of every chunk or by chunk. @default {1} */
  readonly frames?: number | readonly number[];
  /** Most micro-batches of one step whose outputs are kept for the host. */
  readonly microBatches: number;
  /** Where segments are cut besides: instructions after which `run` calls back, ascending; twice the same for two calls. */
  readonly cuts?: ReadonlyMap<SegmentName, readonly number[]>;
  /** The ranks along an axis; needed where the plan has collectives. */
  readonly groups?: GroupOf;
  /** Begin to gather weights ahead of need. @default no */
  readonly prefetch?: Prefetches;
}

/** A piece of a segment: commands that run on the device in one go, a cut by its number, or a collective. */
type Piece = CommandList | { readonly cut: number } | CollectiveRanges;

export class Program implements Disposable {
  readonly arenas: Readonly<Record<ArenaKind, readonly DeviceBuffer[]>>;
  readonly #parameters: ReadonlyMap<string, ParameterPlace>;
  /** By name and first element. */
  readonly #state: ReadonlyMap<string, StatePlace>;
  readonly #constants: readonly DeviceBuffer[];
  /** Slots by chunk and frame. */
  readonly #frames: readonly (readonly (readonly DeviceBuffer[])[])[];
  readonly #workspace: readonly DeviceBuffer[];
  /** One buffer per output, holding every micro-batch's part at a multiple of its stride. */
  readonly #outputs = new Map<string, { buffer: DeviceBuffer; stride: number; bytes: number }>();
  /** All that was allocated. */
  readonly #buffers: DeviceBuffer[] = [];
  readonly #lists = new Map<string, CommandList>();
  readonly #pieces = new Map<string, readonly Piece[]>();
  /** Weights whose gathering begins before a piece, by its index, for each list of pieces. */
  readonly #begun = new Map<string, ReadonlyMap<number, readonly number[]>>();
  readonly #collector: Collector;
  readonly #weights: WeightGathers;
  readonly #prefetch: Prefetches;

  private constructor(
    readonly backend: Backend,
    readonly plan: Plan,
    { frames = 1, microBatches, groups, prefetch = {} }: ProgramOptions,
  ) {
    const allocate = (bytes: number, label: string) => {
      const buffer = backend.allocate(bytes, label);
      this.#buffers.push(buffer);
      return buffer;
    };
    const slots = (sizes: readonly number[], label: string) =>
      sizes.map((bytes, slot) => allocate(bytes, `${label} ${slot}`));
    try {
      this.arenas = {
        parameter: slots(plan.parameterArenas, "parameter"),
        master: plan.modelType ? slots(plan.state.arenas, "master") : [],
        gradient: slots(plan.arenas, "gradient"),
        moment1: slots(plan.state.arenas, "moment1"),
        moment2: slots(plan.state.arenas, "moment2"),
      };
      this.#parameters = new Map(plan.parameters.map((place) => [place.name, place]));
      this.#state = new Map(plan.state.places.map((place) => [`${place.name} ${place.begin}`, place]));
      this.#constants = plan.constants.map((data, index) => {
        const buffer = allocate(data.byteLength, `constant ${index}`);
        backend.upload({ buffer, offset: 0, bytes: data.byteLength }, data);
        return buffer;
      });
      this.#frames = plan.frames.map((sizes, chunk) =>
        Array.from({ length: framesOf(frames, chunk) }, (_, frame) => slots(sizes, `frame ${frame} slot`))
      );
      this.#workspace = slots(plan.workspace, "workspace");
      for (const chunk of plan.frames.keys()) {
        for (const [name, { bytes }] of plan.segments[`forward ${chunk}`].outputs) {
          const stride = Math.ceil(bytes / 256) * 256;
          this.#outputs.set(name, { buffer: allocate(stride * microBatches, `output ${name}`), stride, bytes });
        }
      }
      this.#collector = new Collector(backend, plan, groups);
      this.#weights = new WeightGathers(backend, groups);
      this.#prefetch = prefetch;
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Allocates and compiles everything. Frees what it took when it fails. */
  static async create(backend: Backend, plan: Plan, options: ProgramOptions): Promise<Program> {
    const program = new Program(backend, plan, options);
    try {
      for (const name of Object.keys(plan.segments) as SegmentName[]) {
        const frames = name.startsWith("evaluate") ? 1 : program.#frames[chunkOf(name)]!.length;
        for (let frame = 0; frame < frames; frame++) {
          await program.#prepare(name, frame, options.cuts?.get(name));
        }
      }
      for (const [chunk, frames] of program.#frames.entries()) {
        for (const frame of frames.keys()) {
          for (let microBatch = 0; microBatch < options.microBatches; microBatch++) {
            await program.#prepareOutputs(chunk, frame, microBatch);
          }
        }
      }
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

  async #prepare(name: SegmentName, frame: number, cuts: readonly number[] = []): Promise<void> {
    const chunk = chunkOf(name), pieces: Piece[] = [];
    let commands: Command[] = [], cut = 0;
    const close = async () => {
      if (commands.length > 0) pieces.push(await this.backend.prepare(commands));
      commands = [];
    };
    for (const [index, instruction] of this.#segment(name).instructions.entries()) {
      if (instruction.kind !== "collective") commands.push(this.#command(instruction, chunk, frame));
      else {
        await close();
        pieces.push({
          instruction,
          source: this.#range(instruction.source, chunk, frame),
          target: this.#range(instruction.target, chunk, frame),
          counts: instruction.counts.map((place) => this.#range(place, chunk, frame)),
        });
      }
      if (cuts[cut] === index) await close();
      while (cuts[cut] === index) pieces.push({ cut: cut++ });
    }
    await close();
    this.#pieces.set(`${name} ${frame}`, pieces);
    const gathers = pieces.flatMap((piece, index) => {
      if ("commands" in piece || "cut" in piece || !isWeightGather(piece)) return [];
      this.#weights.add(piece);
      return [{ piece: index, layer: piece.instruction.layer, axis: piece.instruction.axis }];
    });
    this.#begun.set(`${name} ${frame}`, beginnings(gathers, this.#prefetch));
  }

  #command(instruction: Exclude<Instruction, CollectiveInstruction>, chunk: number, frame: number): Command {
    if (instruction.kind === "copy") {
      return {
        kind: "copy",
        source: this.#range(instruction.source, chunk, frame),
        target: this.#range(instruction.target, chunk, frame),
      };
    }
    return {
      kind: "dispatch",
      kernel: instruction.kernel,
      ranges: instruction.places.map((place) => this.#range(place, chunk, frame)),
      label: instruction.label,
    };
  }

  async #prepareOutputs(chunk: number, frame: number, microBatch: number): Promise<void> {
    const { outputs } = this.plan.segments[`forward ${chunk}`];
    if (outputs.size === 0) return;
    const commands = [...outputs].map(([name, place]) => ({
      kind: "copy" as const,
      source: this.#range(place, chunk, frame),
      target: this.outputRange(name, microBatch),
    }));
    this.#lists.set(`outputs ${chunk} ${frame} ${microBatch}`, await this.backend.prepare(commands));
  }

  #segment(name: SegmentName): Segment {
    const segment: Segment | undefined = this.plan.segments[name];
    if (!segment) throw new RangeError(`Cannot find segment ${name}: the plan has ${Object.keys(this.plan.segments)}`);
    return segment;
  }

  #range({ space, slot, offset, bytes }: Place, chunk: number, frame: number): Range {
    const buffer = space === "frame"
      ? this.#frames[chunk]![frame]![slot]!
      : space === "workspace"
      ? this.#workspace[slot]!
      : space === "constant"
      ? this.#constants[slot]!
      : this.arenas[space][slot]!;
    return { buffer, offset, bytes };
  }

  /** Where an input of a segment lies. */
  inputRange(name: SegmentName, input: string, frame = 0): Range {
    const place = this.#segment(name).inputs.get(input);
    if (!place) throw new RangeError(`Cannot upload ${input}: the model has no such input`);
    return this.#range(place, chunkOf(name), frame);
  }

  /** Fills an input of a segment. */
  upload(name: SegmentName, input: string, data: ArrayBufferView, frame = 0): void {
    const range = this.inputRange(name, input, frame);
    if (data.byteLength !== range.bytes) {
      throw new RangeError(`Cannot upload ${input}: it takes ${range.bytes} bytes, got ${data.byteLength}`);
    }
    this.backend.upload(range, data);
  }

  /**
   * Queues a segment's work on the device. Yields where the host must wait for other ranks; a segment without
   * collectives never does.
   *
   * @param atCut what to do at each of the segment's cuts, when all before it is submitted
   */
  *run(name: SegmentName, frame = 0, atCut?: (cut: number) => Generator<Wait, void>): Generator<Wait, void> {
    const pieces = this.#pieces.get(`${name} ${frame}`)!, begun = this.#begun.get(`${name} ${frame}`)!;
    if (begun.size > 0) yield* this.#weights.refresh();
    for (const [index, piece] of pieces.entries()) {
      for (const ahead of begun.get(index) ?? []) {
        const gather = pieces[ahead] as CollectiveRanges;
        this.#weights.begin(gather);
        this.#collector.count(gather.instruction);
      }
      if ("commands" in piece) this.backend.submit(piece);
      else if ("cut" in piece) {
        if (atCut) yield* atCut(piece.cut);
      } else if (isWeightGather(piece)) yield* this.#weights.finish(piece);
      else yield* this.#collector.run(piece);
    }
  }

  /** Tells that commands or uploads of others changed parameters. */
  parametersChanged(): void {
    this.#weights.changed();
  }

  /** Bytes that collectives took part in so far, by axis and operator. */
  get traffic(): readonly Traffic[] {
    return this.#collector.traffic;
  }

  /** Copies a frame's outputs to where they stay until the host reads them, at the step's end. */
  keepOutputs(microBatch: number, frame = 0, chunk = 0): void {
    const list = this.#lists.get(`outputs ${chunk} ${frame} ${microBatch}`);
    if (!list) throw new RangeError(`Cannot keep outputs of micro-batch ${microBatch}: more than were planned for`);
    this.backend.submit(list);
  }

  zeroGradients(): void {
    this.backend.submit(this.#lists.get("clear")!);
  }

  /** Names of what is kept of each micro-batch. */
  get outputNames(): string[] {
    return [...this.#outputs.keys()];
  }

  /** Where the kept outputs of a micro-batch lie. */
  outputRange(name: string, microBatch: number): Range {
    const output = this.#outputs.get(name);
    if (!output) throw new RangeError(`Cannot read ${name}: the model has no such output`);
    return { buffer: output.buffer, offset: microBatch * output.stride, bytes: output.bytes };
  }

  /**
   * Where a segment's output lies, or what it passes on: after a forward pass until the frame's backward pass, after the
   * others until the next pass of any kind.
   */
  resultRange(name: SegmentName, output: string, frame = 0): Range {
    const { outputs, passed } = this.#segment(name), place = outputs.get(output) ?? passed.get(output);
    if (!place) throw new RangeError(`Cannot read ${output}: segment ${name} has no such output`);
    return this.#range(place, chunkOf(name), frame);
  }

  #place(name: string): ParameterPlace {
    const place = this.#parameters.get(name);
    if (!place) throw new RangeError(`Cannot find parameter ${name}: the model has no such parameter`);
    return place;
  }

  /** Range of a tensor of the given kind, all of it. @throws {RangeError} where this rank has not all of it */
  parameterRange(kind: TensorKind, name: string): Range {
    return this.partRange(kind, { name, begin: 0, end: this.#place(name).bytes / 4 });
  }

  /**
   * Range of a part of a tensor of the given kind, `f32`: of a parameter in a half type, of its master.
   *
   * @throws {RangeError} for masters and moments of what this rank does not update
   */
  partRange(kind: TensorKind, part: ParameterPart): Range {
    const { name, begin, end } = part, { arena, offset } = this.#place(name);
    if (kind === "gradient") {
      return { buffer: this.arenas[kind][arena]!, offset: offset + 4 * begin, bytes: 4 * (end - begin) };
    }
    if (kind === "parameter" && !this.plan.modelType) return this.storedRange(part);
    const place = this.#state.get(`${name} ${begin}`);
    if (place?.end !== end) {
      throw new RangeError(`Cannot find ${kind} of ${name}[${begin}:${end}]: this rank does not update it`);
    }
    const { [kind === "parameter" ? "master" : kind]: arenas } = this.arenas;
    return { buffer: arenas[place.arena]!, offset: place.offset, bytes: place.bytes };
  }

  /** Where the passes read a part of a parameter, in whole words. */
  storedRange({ name, begin, end }: ParameterPart): Range {
    const { arena, offset, type } = this.#place(name).read, width = elementBytes[type];
    const bytes = 4 * Math.ceil(width * (end - begin) / 4);
    return { buffer: this.arenas.parameter[arena]!, offset: offset + width * begin, bytes };
  }

  /** Writes a part of a parameter as the passes read it, in whole words; a master stays as it is. */
  writeStored(part: ParameterPart, stored: Uint8Array): void {
    this.backend.upload(this.storedRange(part), stored);
    this.parametersChanged();
  }

  /** Writes all of a tensor: of a parameter what the passes read, and of its master what is here. */
  writeParameter(kind: TensorKind, name: string, data: Float32Array): void {
    const { bytes, read: { type } } = this.#place(name);
    if (data.byteLength !== bytes) {
      throw new RangeError(`Cannot write ${kind} ${name}: it holds ${bytes / 4} numbers, got ${data.length}`);
    }
    if (kind !== "parameter") return this.backend.upload(this.parameterRange(kind, name), data);
    const stored = isHalf(type) ? wholeWords(encode(type, data)) : data, { buffer, byteOffset, byteLength } = stored;
    this.writeStored({ name, begin: 0, end: data.length }, new Uint8Array(buffer, byteOffset, byteLength));
    if (!this.plan.modelType) return;
    for (const part of this.plan.state.places) {
      if (part.name !== name) continue;
      this.backend.upload(this.partRange(kind, part), data.subarray(part.begin, part.end));
    }
  }

  /** Reads all of a tensor, flat. @throws {RangeError} where this rank has not all of it */
  readParameter(kind: TensorKind, name: string): Promise<Float32Array<ArrayBuffer>> {
    return this.readPart(kind, { name, begin: 0, end: this.#place(name).bytes / 4 });
  }

  /** Reads a part of a tensor, flat. @throws {RangeError} as `partRange` */
  async readPart(kind: TensorKind, part: ParameterPart): Promise<Float32Array<ArrayBuffer>> {
    const [bytes] = await settle(this.backend.read([this.partRange(kind, part)]));
    return new Float32Array(bytes!.buffer, bytes!.byteOffset, bytes!.byteLength / 4);
  }

  [Symbol.dispose](): void {
    this.#buffers.splice(0).forEach((buffer) => this.backend.release(buffer));
    this.#lists.clear();
  }
}

/** Half floats with one more where their number is odd: devices are written in words of two. */
function wholeWords(halves: Uint16Array<ArrayBuffer>): Uint16Array<ArrayBuffer> {
  if (halves.length % 2 === 0) return halves;
  const padded = new Uint16Array(halves.length + 1);
  padded.set(halves);
  return padded;
}

const chunkOf = (name: SegmentName): number => Number(name.slice(name.lastIndexOf(" ") + 1));

/** Runs a generator of steps to its end. Waiting blocks the thread where that is the quick way (see `readback.ts`). */
export async function drive<T>(generator: Generator<Wait, T>): Promise<T> {
  for (;;) {
    const { done, value } = generator.next();
    if (done) return value;
    await value.ready();
  }
}

/** Waits for a read-back outside the hot path. */
export async function settle(ticket: ReadTicket): Promise<Uint8Array<ArrayBuffer>[]> {
  await ticket.ready();
  return ticket.take();
}
