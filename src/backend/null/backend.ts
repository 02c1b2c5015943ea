/**
 * The null backend allocates nothing and computes nothing, yet checks every range and counts the work, so that plans and
 * schedules are tested without a device. What it reads back is zeros.
 */
import type { Backend, CommandList, DeviceBuffer } from "../backend.ts";
import { hostTraits, takeOnce } from "../cpu/backend.ts";
import { Ledger } from "../ledger.ts";

/** Work seen since the backend was opened. */
export interface Counts {
  submits: number;
  dispatches: number;
  copies: number;
  clears: number;
  uploads: number;
  uploadBytes: number;
  reads: number;
  readBytes: number;
  /** Sum of the kernels' stated costs. */
  flops: number;
  bytes: number;
}

export interface NullBackend extends Backend {
  readonly name: "null";
  readonly counts: Readonly<Counts>;
  /** Largest `allocatedBytes` so far. */
  readonly peakBytes: number;
}

/** Opens the null backend. `limits` narrows the device, to see how a plan takes a small one. */
export function openNullBackend(limits: Partial<Backend["traits"]["limits"]> = {}): NullBackend {
  const traits = { ...hostTraits, description: "null device", limits: { ...hostTraits.limits, ...limits } };
  const ledger = new Ledger<DeviceBuffer>("null", traits);
  const counts: Counts = {
    submits: 0,
    dispatches: 0,
    copies: 0,
    clears: 0,
    uploads: 0,
    uploadBytes: 0,
    reads: 0,
    readBytes: 0,
    flops: 0,
    bytes: 0,
  };
  let peakBytes = 0;
  return {
    name: "null",
    traits,
    counts,
    get peakBytes() {
      return peakBytes;
    },
    get allocatedBytes() {
      return ledger.allocatedBytes;
    },
    allocate(bytes, label) {
      ledger.checkSize(bytes, label);
      const buffer = ledger.add({ label, bytes });
      peakBytes = Math.max(peakBytes, ledger.allocatedBytes);
      return buffer;
    },
    release(buffer) {
      ledger.remove(buffer);
    },
    upload(target, data) {
      ledger.checkUpload(target, data);
      counts.uploads++;
      counts.uploadBytes += data.byteLength;
    },
    // deno-lint-ignore require-await -- errors must reject, as they do on the GPU
    async prepare(commands): Promise<CommandList> {
      for (const command of commands) ledger.checkCommand(command);
      return { commands: [...commands] };
    },
    submit(list) {
      counts.submits++;
      for (const command of list.commands) {
        ledger.checkLive(command);
        if (command.kind === "copy") counts.copies++;
        else if (command.kind === "clear") counts.clears++;
        else {
          counts.dispatches++;
          counts.flops += command.kernel.cost.flops;
          counts.bytes += command.kernel.cost.bytes;
        }
      }
    },
    read(ranges) {
      ledger.checkRead(ranges);
      counts.reads++;
      for (const { bytes } of ranges) counts.readBytes += bytes;
      return takeOnce(ranges.map(({ bytes }) => new Uint8Array(bytes)));
    },
    readInto(ranges, places) {
      ledger.checkRead(ranges, places);
      counts.reads++;
      for (const { bytes } of ranges) counts.readBytes += bytes;
      for (const place of places) place.fill(0);
      return takeOnce(undefined);
    },
    finish: () => Promise.resolve(),
    [Symbol.dispose]() {
      ledger.clear();
    },
  };
}
