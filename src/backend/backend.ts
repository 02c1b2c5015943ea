/**
 * The narrow waist: all that a device must do. Buffers are untyped ranges of bytes; a backend knows kernels as text or
 * as a host function, never what an operator means. Three backends implement it: `webgpu`, `cpu` (slow on purpose: the
 * oracle), and `null` (allocates and computes nothing, so that plans and schedules are tested without a device).
 */
import type { ChoiceTable } from "../../kernels/choices.ts";
import type { DeviceTraits, Kernel } from "../../kernels/kernel.ts";

/** Device memory. Contents start as zero. Offsets and sizes are in bytes, multiples of 4. */
export interface DeviceBuffer {
  readonly label: string;
  readonly bytes: number;
}

/** A range of a buffer. `offset` is a multiple of the device's storage alignment (256 serves all). */
export interface Range {
  readonly buffer: DeviceBuffer;
  readonly offset: number;
  readonly bytes: number;
}

export type Command =
  | { readonly kind: "dispatch"; readonly kernel: Kernel; readonly ranges: readonly Range[]; readonly label?: string }
  | { readonly kind: "copy"; readonly source: Range; readonly target: Range }
  | { readonly kind: "clear"; readonly target: Range };

/** Commands made ready once (pipelines, bind groups) and submitted any number of times. */
export interface CommandList {
  readonly commands: readonly Command[];
}

/**
 * A read-back under way (see `webgpu/readback.ts`). Await `ready` before `take`, which may be called once: where the
 * provider allows it, `take` alone blocks until the bytes are there; elsewhere it throws.
 */
export interface ReadTicket<Taken = Uint8Array<ArrayBuffer>[]> {
  /**
   * Blocks until the bytes are mapped, without copying them out: work submitted between `wait` and `take` keeps the
   * device busy while the host copies. Optional, since `take` waits too.
   */
  wait(): void;
  /** One array per range, in order; owned by the caller. Nothing, where the reader named the places. */
  take(): Taken;
  /** Resolves when `take` would not block for long. */
  ready(): Promise<void>;
}

/** Device time of one dispatch, all its passes together. */
export interface KernelTiming {
  readonly kernel: Kernel;
  readonly seconds: number;
}

/**
 * The host's seconds in `submit` so far: recording commands, and handing them to the queue, which on some devices
 * computes in the call.
 */
export interface HostTimes {
  readonly encode: number;
  readonly queue: number;
}

export interface Backend extends Disposable {
  readonly name: "webgpu" | "cpu" | "null";
  readonly traits: DeviceTraits;
  /** Bytes allocated and not released. */
  readonly allocatedBytes: number;
  /** @throws {RangeError} naming the size asked and the limit, when the device cannot hold it. */
  allocate(bytes: number, label: string): DeviceBuffer;
  release(buffer: DeviceBuffer): void;
  upload(target: Range, data: ArrayBufferView): void;
  /** Compiles what is new. Rejects with the kernel's name and the compiler's message when WGSL is refused. */
  prepare(commands: readonly Command[]): Promise<CommandList>;
  /** Queues work; returns at once. Order of submission is order of execution. */
  submit(list: CommandList): void;
  /** Starts reading ranges as they are after all work submitted so far. */
  read(ranges: readonly Range[]): ReadTicket;
  /**
   * The same into memory of the caller's, shared or not, one place as long as its range for each: without fresh arrays,
   * whose pages cost several times what copying the bytes does. What is there is undefined until `take`.
   */
  readInto(ranges: readonly Range[], places: readonly Uint8Array[]): ReadTicket<void>;
  /** Waits for all submitted work. */
  finish(): Promise<void>;
  /** Which forms of kernels are compiled from now on, where there are several; `traits.choices` is the same. */
  readonly choices?: ChoiceTable;
  /** Absent where commands are not recorded. */
  readonly hostTimes?: HostTimes;
  /**
   * Runs `body` and resolves to the time of every dispatch submitted meanwhile, in order of execution. Each pass is timed
   * alone, so the whole takes a little longer than untimed. Absent where the device has no timestamps.
   */
  profile?(body: () => void | Promise<void>): Promise<readonly KernelTiming[]>;
}
