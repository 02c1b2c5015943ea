/**
 * Every byte that comes back from the device comes through here.
 *
 * Awaiting `mapAsync` costs 11 ms in Deno whatever the size, as its promise is polled from a timer. But `mapAsync`
 * itself drives the device until the queue is empty, so the range can be had right after the call, without awaiting:
 * 0.1 to 0.6 ms. Two facts bound the trick:
 *
 * - `getMappedRange` on a staging buffer that was never mapped with an await aborts the whole process (no exception).
 *   So each buffer is *warmed*: mapped once with an await, before it joins the ring.
 * - The wait is for ALL work submitted so far, and blocks the thread. So read back before submitting the next piece,
 *   and submit the next piece (`wait`) before copying the bytes out (`take`).
 *
 * Where the range is not there after the call (a provider that polls elsewhere), `take` says so, and `ready` awaits.
 *
 * A read larger than the largest warmed buffer is made at once, in pieces through a warmed one, and a larger buffer is
 * warmed in the background for the next time (up to `largestStaging`).
 *
 * Deno's `getMappedRange` copies into memory fresh from the system, and the first touch of a page costs several times the
 * copying of it. So bytes leave in windows of `windowBytes`, each freed before the next is asked for: it is the same
 * memory then, in the processor's cache.
 */
import type { Range, ReadTicket } from "../backend.ts";
import { beginWait, endWait } from "./dawn.ts";
import type { Provider } from "./provider.ts";

/** A range with the device's own buffer. */
export interface ReadRange extends Pick<Range, "offset" | "bytes"> {
  readonly buffer: GPUBuffer;
}

const ringSize = 3;
const firstStaging = 1 << 20;
const largestStaging = 64 << 20;
const windowBytes = 256 << 10;

export interface Readback {
  /** Queues the copies of these ranges as they are after all work submitted so far. */
  read(ranges: readonly ReadRange[]): ReadTicket;
  /** The same into these places, one for each range and as long. */
  readInto(ranges: readonly ReadRange[], places: readonly Uint8Array[]): ReadTicket<void>;
  /** Bytes of the largest warmed staging buffer. */
  readonly largestBytes: number;
  /** Waits for mapping promises and warming still under way, so that nothing outlives the caller. */
  settle(): Promise<void>;
}

interface Staging {
  readonly buffer: GPUBuffer;
  readonly bytes: number;
}

/** Where a range, or a part of one, sits in the staging buffer. */
interface Piece {
  readonly range: number;
  readonly rangeOffset: number;
  readonly stagingOffset: number;
  readonly bytes: number;
}

/** A read in a staging buffer, until its bytes are in their places. */
interface Flight {
  readonly staging: Staging;
  readonly pieces: readonly Piece[];
  readonly bytes: number;
  readonly places: readonly Uint8Array[];
  mapping?: Promise<void>;
  /** The first window, once the device has answered. */
  mapped?: ArrayBuffer;
  landed: boolean;
}

/** `read` in terms of `readInto`. */
function intoFresh(
  readInto: Readback["readInto"],
): Readback["read"] {
  return (ranges) => {
    const arrays = ranges.map(({ bytes }) => new Uint8Array(bytes)), ticket = readInto(ranges, arrays);
    return {
      wait: () => ticket.wait(),
      ready: () => ticket.ready(),
      take() {
        ticket.take();
        return arrays;
      },
    };
  };
}

const takenTwice = () => new Error("Cannot take a read-back twice: keep the arrays of the first call");

/** Opens the form that suits the provider: on Dawn a read-back is simply awaited. */
export async function openReadback(
  device: GPUDevice,
  provider: Provider = "deno",
  submit: SubmitCopies = submitAlone(device),
): Promise<Readback> {
  return provider === "dawn" ? openAwaitedReadback(device, submit) : await openPolledReadback(device, submit);
}

/** Records copies after all work so far, and submits it all. */
export type SubmitCopies = (record: (encoder: GPUCommandEncoder) => void) => void;

const submitAlone = (device: GPUDevice): SubmitCopies => (record) => {
  const encoder = device.createCommandEncoder({ label: "readback" });
  record(encoder);
  device.queue.submit([encoder.finish()]);
};

/**
 * Dawn's form: an awaited map costs 0.05 to 0.1 ms there and waits for its own copy alone, whatever is queued behind it.
 * Staging buffers are made when none that is free fits, and kept for the next time.
 */
function openAwaitedReadback(device: GPUDevice, submit: SubmitCopies): Readback {
  const free: Staging[] = [];
  const pending = new Set<Promise<unknown>>();
  const largest = Math.min(largestStaging, device.limits.maxBufferSize);

  function acquire(bytes: number): Staging {
    const fitting = free.filter((staging) => staging.bytes >= bytes).sort((a, b) => a.bytes - b.bytes)[0];
    if (fitting !== undefined) return free.splice(free.indexOf(fitting), 1)[0]!;
    const size = Math.min(largest, 2 ** Math.max(16, Math.ceil(Math.log2(bytes))));
    const usage = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
    return { buffer: device.createBuffer({ label: `staging of ${size} bytes`, size, usage }), bytes: size };
  }
  /** Keeps the largest few. */
  function giveBack(staging: Staging): void {
    free.push(staging);
    free.sort((a, b) => b.bytes - a.bytes);
    for (const { buffer } of free.splice(ringSize)) buffer.destroy();
  }

  const readInto: Readback["readInto"] = (ranges, places) => {
    beginWait(ranges.reduce((sum, { bytes }) => sum + bytes, 0));
    const flights = pack(ranges, largest).map((pieces): Flight => {
      const bytes = pieces.reduce((sum, piece) => sum + piece.bytes, 0);
      const staging = acquire(bytes);
      submit(copies(ranges, pieces, staging));
      const mapping = staging.buffer.mapAsync(GPUMapMode.READ, 0, bytes);
      const settled = mapping.catch(() => {}).finally(() => pending.delete(settled));
      pending.add(settled);
      return { staging, pieces, bytes, places, mapping, landed: false };
    });
    let taken = false;
    return {
      wait() {}, // nothing can be waited for without giving up the thread
      take() {
        if (taken) throw takenTwice();
        for (const { staging, pieces, bytes, places } of flights) {
          const { buffer } = staging;
          if (buffer.mapState !== "mapped") {
            throw new Error("Cannot read back: the device has not answered yet; await ready() before take()");
          }
          copyOut(new Uint8Array(buffer.getMappedRange(0, bytes)), 0, pieces, places);
          buffer.unmap();
          giveBack(staging);
        }
        taken = true;
      },
      async ready() {
        if (taken) return;
        for (const { mapping } of flights) await mapping;
        endWait();
      },
    };
  };
  return {
    get largestBytes() {
      return largest;
    },
    read: intoFresh(readInto),
    readInto,
    async settle() {
      while (pending.size > 0) await Promise.all(pending);
    },
  };
}

const copies =
  (ranges: readonly ReadRange[], pieces: readonly Piece[], { buffer: staging }: Staging) =>
  (encoder: GPUCommandEncoder): void => {
    for (const { range, rangeOffset, stagingOffset, bytes } of pieces) {
      const { buffer, offset } = ranges[range];
      encoder.copyBufferToBuffer(buffer, offset + rangeOffset, staging, stagingOffset, bytes);
    }
  };

/** Copies what of the pieces lies in a window of the staging buffer, which begins at `begin`, to its places. */
function copyOut(window: Uint8Array, begin: number, pieces: readonly Piece[], places: readonly Uint8Array[]): void {
  const end = begin + window.length;
  for (const { range, rangeOffset, stagingOffset, bytes } of pieces) {
    const from = Math.max(begin, stagingOffset), to = Math.min(end, stagingOffset + bytes);
    if (from < to) places[range].set(window.subarray(from - begin, to - begin), rangeOffset + from - stagingOffset);
  }
}

/** Opens the ring, its staging buffers warmed. */
async function openPolledReadback(device: GPUDevice, submit: SubmitCopies): Promise<Readback> {
  const free: Staging[] = await Promise.all(
    Array.from({ length: ringSize }, () => warm(device, firstStaging)),
  );
  const flights: Flight[] = [];
  const pending = new Set<Promise<unknown>>();
  let growingTo = firstStaging;

  function track(promise: Promise<unknown>): void {
    const settled = promise.catch(() => {}).finally(() => pending.delete(settled));
    pending.add(settled);
  }

  const largestWarmed = () =>
    Math.max(...[...free, ...flights.map(({ staging }) => staging)].map(({ bytes }) => bytes));

  /** The smallest free buffer that fits; reads under way land early, oldest first, until there is one. */
  function acquire(bytes: number): Staging {
    for (;;) {
      const fitting = free.filter((staging) => staging.bytes >= bytes).sort((a, b) => a.bytes - b.bytes)[0];
      if (fitting === undefined) land(flights[0]);
      else return free.splice(free.indexOf(fitting), 1)[0];
    }
  }

  /** Warms a larger buffer, which then takes the place of the smallest free one. */
  function grow(bytes: number): void {
    const size = Math.min(largestStaging, device.limits.maxBufferSize, 2 ** Math.ceil(Math.log2(bytes)));
    if (size <= growingTo) return;
    growingTo = size;
    track(
      warm(device, size).then((staging) => {
        free.push(staging);
        free.sort((a, b) => a.bytes - b.bytes);
        if (free.length > 1) free.shift()!.buffer.destroy();
      }),
    );
  }

  function launch(ranges: readonly ReadRange[], pieces: readonly Piece[], places: readonly Uint8Array[]): Flight {
    const bytes = pieces.reduce((sum, piece) => sum + piece.bytes, 0);
    const staging = acquire(bytes);
    submit(copies(ranges, pieces, staging));
    const flight: Flight = { staging, pieces, bytes, places, landed: false };
    flights.push(flight);
    return flight;
  }

  const windowAt = ({ staging, bytes }: Flight, begin: number): ArrayBuffer =>
    staging.buffer.getMappedRange(begin, Math.min(windowBytes, bytes - begin));

  /** Maps without awaiting. Returns whether the bytes are there. */
  function tryMap(flight: Flight): boolean {
    if (flight.mapped !== undefined || flight.landed) return true;
    if (flight.mapping === undefined) {
      flight.mapping = flight.staging.buffer.mapAsync(GPUMapMode.READ, 0, flight.bytes);
      track(flight.mapping);
    }
    try {
      flight.mapped = windowAt(flight, 0);
      return true;
    } catch {
      return false; // still pending, or the device is lost: `ready` tells
    }
  }

  function land(flight: Flight): void {
    if (flight.landed) return;
    if (!tryMap(flight)) {
      throw new Error("Cannot read back without waiting: the device has not answered yet; await ready() before take()");
    }
    for (let begin = 0; begin < flight.bytes; begin += windowBytes) {
      const window = begin === 0 ? flight.mapped! : windowAt(flight, begin);
      copyOut(new Uint8Array(window), begin, flight.pieces, flight.places);
      window.transfer(0); // frees it now
    }
    flight.staging.buffer.unmap();
    delete flight.mapped;
    flight.landed = true;
    flights.splice(flights.indexOf(flight), 1);
    free.push(flight.staging);
  }

  const readInto: Readback["readInto"] = (ranges, places) => {
    const total = ranges.reduce((sum, { bytes }) => sum + bytes, 0);
    const room = largestWarmed();
    const loads = pack(ranges, room);
    // All but the last load land here and now, so that later work cannot change what is read.
    for (const pieces of loads.slice(0, -1)) land(launch(ranges, pieces, places));
    let flight = loads.length > 0 ? launch(ranges, loads[loads.length - 1], places) : undefined;
    if (total > room) grow(total);
    let taken = false;
    return {
      wait() {
        if (flight !== undefined) tryMap(flight);
      },
      take() {
        if (taken) throw takenTwice();
        if (flight !== undefined) land(flight);
        taken = true;
        flight = undefined;
      },
      async ready() {
        if (flight === undefined || tryMap(flight)) return;
        await flight.mapping;
        if (!tryMap(flight)) throw new Error("Cannot read back: the staging buffer was not mapped");
      },
    };
  };
  return {
    get largestBytes() {
      return largestWarmed();
    },
    read: intoFresh(readInto),
    readInto,
    async settle() {
      while (pending.size > 0) await Promise.all(pending);
    },
  };
}

async function warm(device: GPUDevice, bytes: number): Promise<Staging> {
  const buffer = device.createBuffer({
    label: `staging of ${bytes} bytes`,
    size: bytes,
    usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST,
  });
  await buffer.mapAsync(GPUMapMode.READ);
  buffer.unmap();
  return { buffer, bytes };
}

/** Cuts ranges into loads of at most `room` bytes, in order. */
export function pack(ranges: readonly Pick<Range, "bytes">[], room: number): Piece[][] {
  const loads: Piece[][] = [];
  let filled = room;
  ranges.forEach(({ bytes }, range) => {
    for (let rangeOffset = 0; rangeOffset < bytes;) {
      if (filled === room) {
        loads.push([]);
        filled = 0;
      }
      const part = Math.min(bytes - rangeOffset, room - filled);
      loads[loads.length - 1].push({ range, rangeOffset, stagingOffset: filled, bytes: part });
      rangeOffset += part;
      filled += part;
    }
  });
  return loads;
}
