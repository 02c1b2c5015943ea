/**
 * The CPU backend: every kernel's `reference`, on plain memory. Slow on purpose: it is the oracle of the others, and it
 * trains where no adapter can be had.
 */
import { runReference } from "../../../kernels/host.ts";
import type { DeviceTraits } from "../../../kernels/kernel.ts";
import type { Backend, Command, CommandList, DeviceBuffer, Range, ReadTicket } from "../backend.ts";
import { Ledger } from "../ledger.ts";

interface CpuBuffer extends DeviceBuffer {
  readonly memory: ArrayBuffer;
}

/** Limits as a roomy GPU has them; the alignment is the strictest one, so that a plan that runs here runs there. */
export const hostTraits: DeviceTraits = {
  provider: "none",
  description: "CPU reference",
  software: true,
  subgroupSize: 0,
  features: { subgroups: false, shaderF16: false, timestampQuery: false, matrixUnits: false },
  limits: {
    maxBufferSize: 2 ** 32 - 4,
    maxStorageBufferBindingSize: 2 ** 32 - 4,
    maxStorageBuffersPerShaderStage: 8,
    maxComputeWorkgroupsPerDimension: 65_535,
    maxComputeInvocationsPerWorkgroup: 256,
    maxComputeWorkgroupStorageSize: 16_384,
    minStorageBufferOffsetAlignment: 256,
  },
};

/**
 * Opens the CPU backend. It holds memory only; disposing drops it.
 *
 * @param limits lower ones than its own, which it then keeps to
 */
export function openCpuBackend(limits: Partial<DeviceTraits["limits"]> = {}): Backend {
  const traits: DeviceTraits = { ...hostTraits, limits: { ...hostTraits.limits, ...limits } };
  const ledger = new Ledger<CpuBuffer>("cpu", traits);

  function execute(command: Command): void {
    ledger.checkLive(command); // a buffer may have been released since it was prepared
    switch (command.kind) {
      case "dispatch": {
        const { kernel, ranges } = command;
        runReference(kernel, ranges.map(({ buffer, offset }) => ({ memory: (buffer as CpuBuffer).memory, offset })));
        return;
      }
      case "copy":
        bytesOf(command.target).set(bytesOf(command.source));
        return;
      case "clear":
        bytesOf(command.target).fill(0);
        return;
      default:
        command satisfies never;
    }
  }

  return {
    name: "cpu",
    traits,
    get allocatedBytes() {
      return ledger.allocatedBytes;
    },
    allocate(bytes, label) {
      ledger.checkSize(bytes, label);
      let memory: ArrayBuffer;
      try {
        memory = new ArrayBuffer(bytes);
      } catch (cause) {
        throw new RangeError(`Cannot allocate buffer "${label}": the host has no ${bytes} bytes left`, { cause });
      }
      return ledger.add({ label, bytes, memory });
    },
    release(buffer) {
      ledger.remove(buffer);
    },
    upload(target, data) {
      const { memory } = ledger.checkUpload(target, data);
      const source = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
      new Uint8Array(memory, target.offset, data.byteLength).set(source);
    },
    // deno-lint-ignore require-await -- errors must reject, as they do on the GPU
    async prepare(commands): Promise<CommandList> {
      for (const command of commands) ledger.checkCommand(command);
      return { commands: [...commands] };
    },
    submit(list) {
      for (const command of list.commands) execute(command);
    },
    read(ranges): ReadTicket {
      ledger.checkRead(ranges);
      return takeOnce(ranges.map((range) => bytesOf(range).slice()));
    },
    readInto(ranges, places) {
      ledger.checkRead(ranges, places);
      ranges.forEach((range, index) => places[index]!.set(bytesOf(range)));
      return takeOnce(undefined);
    },
    finish: () => Promise.resolve(),
    [Symbol.dispose]() {
      ledger.clear();
    },
  };
}

function bytesOf({ buffer, offset, bytes }: Range): Uint8Array<ArrayBuffer> {
  return new Uint8Array((buffer as CpuBuffer).memory, offset, bytes);
}

/** A ticket whose bytes are already there. */
export function takeOnce<Taken>(what: Taken): ReadTicket<Taken> {
  let left: { readonly what: Taken } | undefined = { what };
  return {
    wait() {},
    take() {
      if (left === undefined) throw new Error("Cannot take a read-back twice: keep the arrays of the first call");
      const { what } = left;
      left = undefined;
      return what;
    },
    ready: () => Promise.resolve(),
  };
}
