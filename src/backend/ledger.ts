/**
 * What the three backends check alike, so that a wrong plan fails the same everywhere: sizes, bounds, alignment,
 * released buffers, and WebGPU's rule that a dispatch must not both read and write one buffer.
 */
import { type DeviceTraits, elementBytes, type Operand } from "../../kernels/kernel.ts";
import type { Command, DeviceBuffer, Range } from "./backend.ts";

/** Bytes of the binding that an operand needs: its elements, rounded up to whole words. */
export function operandBytes(operand: Operand): number {
  return Math.ceil((operand.length * elementBytes[operand.type]) / 4) * 4;
}

/** Live buffers of one backend and the checks on everything that names them. */
export class Ledger<Buffer extends DeviceBuffer> {
  #live = new Set<DeviceBuffer>();
  #bytes = 0;

  constructor(readonly backendName: string, readonly traits: DeviceTraits) {}

  get allocatedBytes(): number {
    return this.#bytes;
  }

  get buffers(): Iterable<Buffer> {
    return this.#live as Set<Buffer>;
  }

  /** @throws {RangeError} when a buffer of this size cannot be had. */
  checkSize(bytes: number, label: string): void {
    const limit = this.traits.limits.maxBufferSize;
    if (!Number.isSafeInteger(bytes) || bytes <= 0 || bytes % 4 !== 0) {
      throw new RangeError(`Cannot allocate buffer "${label}": bytes must be a positive multiple of 4, got ${bytes}`);
    }
    if (bytes > limit) {
      throw new RangeError(
        `Cannot allocate buffer "${label}": ${bytes} bytes asked, the ${this.backendName} device ` +
          `(${this.traits.description}) allows at most ${limit} a buffer`,
      );
    }
  }

  add(buffer: Buffer): Buffer {
    this.#live.add(buffer);
    this.#bytes += buffer.bytes;
    return buffer;
  }

  remove(buffer: DeviceBuffer): Buffer {
    if (!this.#live.delete(buffer)) {
      throw new ReferenceError(`Cannot release buffer "${buffer.label}": it is not a live buffer of this backend`);
    }
    this.#bytes -= buffer.bytes;
    return buffer as Buffer;
  }

  clear(): void {
    this.#live.clear();
    this.#bytes = 0;
  }

  /** Checks a range against its buffer, and returns the buffer as this backend's own type. */
  checkRange(range: Range, action: string, alignment = 4): Buffer {
    const { buffer, offset, bytes } = range;
    if (!this.#live.has(buffer)) {
      throw new ReferenceError(`Cannot ${action}: buffer "${buffer.label}" was released or is another backend's`);
    }
    if (!Number.isSafeInteger(offset) || offset < 0 || offset % alignment !== 0) {
      throw new RangeError(
        `Cannot ${action}: offset in buffer "${buffer.label}" must be a multiple of ${alignment}, got ${offset}`,
      );
    }
    if (!Number.isSafeInteger(bytes) || bytes <= 0 || bytes % 4 !== 0) {
      throw new RangeError(
        `Cannot ${action}: range of buffer "${buffer.label}" must have a positive multiple of 4 bytes, got ${bytes}`,
      );
    }
    if (offset + bytes > buffer.bytes) {
      throw new RangeError(
        `Cannot ${action}: range ${offset}..${offset + bytes} leaves buffer "${buffer.label}" of ${buffer.bytes} bytes`,
      );
    }
    return buffer as Buffer;
  }

  /** @throws {RangeError} when the data is larger than the range. */
  checkUpload(target: Range, data: ArrayBufferView): Buffer {
    const buffer = this.checkRange(target, `upload to buffer "${target.buffer.label}"`);
    if (data.byteLength > target.bytes) {
      throw new RangeError(
        `Cannot upload to buffer "${target.buffer.label}": ${data.byteLength} bytes given for a range of ${target.bytes}`,
      );
    }
    return buffer;
  }

  checkRead(ranges: readonly Range[], places?: readonly Uint8Array[]): void {
    for (const [index, range] of ranges.entries()) {
      const action = `read buffer "${range.buffer.label}"`;
      this.checkRange(range, action);
      const length = places ? places[index]?.length ?? 0 : range.bytes;
      if (length !== range.bytes) {
        throw new RangeError(`Cannot ${action}: ${range.bytes} bytes asked into a place of ${length}`);
      }
    }
  }

  /** Of a command that was checked: whether its buffers are still there. */
  checkLive(command: Command): void {
    const ranges = command.kind === "dispatch"
      ? command.ranges
      : command.kind === "copy"
      ? [command.source, command.target]
      : [command.target];
    for (const { buffer } of ranges) {
      if (!this.#live.has(buffer)) this.checkCommand(command); // which says what it was for
    }
  }

  checkCommand(command: Command): void {
    switch (command.kind) {
      case "dispatch":
        return this.#checkDispatch(command);
      case "copy": {
        const { source, target } = command;
        const action = `copy "${source.buffer.label}" to "${target.buffer.label}"`;
        this.checkRange(source, action);
        this.checkRange(target, action);
        if (source.bytes !== target.bytes) {
          throw new RangeError(`Cannot ${action}: source has ${source.bytes} bytes, target ${target.bytes}`);
        }
        if (source.buffer === target.buffer) {
          throw new RangeError(`Cannot ${action}: source and target must be different buffers`);
        }
        return;
      }
      case "clear":
        this.checkRange(command.target, `clear buffer "${command.target.buffer.label}"`);
        return;
      default:
        command satisfies never;
    }
  }

  #checkDispatch({ kernel, ranges }: Extract<Command, { kind: "dispatch" }>): void {
    const { operands, name } = kernel;
    if (ranges.length !== operands.length) {
      throw new RangeError(
        `Cannot dispatch ${name}: it has ${operands.length} operands (${operands.map((o) => o.name).join(", ")}, ` +
          `scratch included), got ${ranges.length} ranges`,
      );
    }
    const { minStorageBufferOffsetAlignment, maxStorageBufferBindingSize } = this.traits.limits;
    const firstUse = new Map<DeviceBuffer, Operand>();
    operands.forEach((operand, i) => {
      const range = ranges[i];
      const action = `dispatch ${name} with operand ${operand.name}`;
      this.checkRange(range, action, minStorageBufferOffsetAlignment);
      const needed = operandBytes(operand);
      if (range.bytes < needed) {
        throw new RangeError(
          `Cannot ${action}: ${operand.length} ${operand.type} need ${needed} bytes, range has ${range.bytes}`,
        );
      }
      if (needed > maxStorageBufferBindingSize) {
        throw new RangeError(
          `Cannot ${action}: ${needed} bytes exceed the device's binding limit of ${maxStorageBufferBindingSize}`,
        );
      }
      const other = firstUse.get(range.buffer);
      if (other !== undefined && (other.access !== "read" || operand.access !== "read")) {
        throw new RangeError(
          `Cannot ${action}: buffer "${range.buffer.label}" also holds operand ${other.name} (${other.access}), ` +
            `and operands may share a buffer only when all of them are read`,
        );
      }
      if (other === undefined) firstUse.set(range.buffer, operand);
    });
  }
}
