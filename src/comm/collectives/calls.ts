/**
 * Collectives from another thread than the one that has the connections: a call names the group and lends shared memory,
 * and whoever holds the connections performs it there. The rank's own thread may block on its GPU meanwhile.
 */
import { evenBounds } from "./algorithms.ts";
import type { Communicator, Group } from "./communicator.ts";
import { type Elements, typeOf } from "./elements.ts";
import { adopt, memoryOf } from "./vector_sum.ts";

/** A stretch of shared memory. */
export interface SharedElements {
  /** Of the memory among all that this rank has lent. */
  readonly number: number;
  /** The memory itself, the first time it is lent. */
  readonly memory?: SharedArrayBuffer | WebAssembly.Memory;
  /** In bytes. */
  readonly offset: number;
  /** In elements. */
  readonly length: number;
  readonly type: ReturnType<typeof typeOf>;
}

/** One collective on one group; plain data and shared memory, so that it can be posted to another thread. */
export type CollectiveCall =
  & {
    readonly group: string;
    readonly ranks: readonly number[];
    /** Numbers of memory that will not be lent again. */
    readonly forget?: readonly number[];
  }
  & (
    | { readonly operator: "all-reduce"; readonly data: SharedElements; readonly reduction: "sum" | "max" }
    | {
      readonly operator: "reduce-scatter" | "all-gather";
      readonly data: SharedElements;
      readonly counts?: readonly number[] | undefined;
    }
    | { readonly operator: "broadcast" | "reduce"; readonly data: SharedElements; readonly root: number }
    | {
      readonly operator: "gather";
      readonly data: SharedElements;
      readonly counts?: readonly number[] | undefined;
      readonly root: number;
    }
    | {
      readonly operator: "all-to-all";
      readonly data: SharedElements;
      readonly into: SharedElements;
      readonly counts?: { readonly from: readonly number[]; readonly into: readonly number[] } | undefined;
    }
    | { readonly operator: "barrier" }
    | { readonly operator: "send" | "receive"; readonly data: SharedElements; readonly peer: number }
  );

type Borrowed = Map<number, SharedArrayBuffer>;

function open({ number, memory, offset, length, type }: SharedElements, borrowed: Borrowed): Elements {
  if (memory) borrowed.set(number, memory instanceof WebAssembly.Memory ? adopt(memory) : memory);
  const buffer = borrowed.get(number)!;
  switch (type) {
    case "f32":
      return new Float32Array(buffer, offset, length);
    case "f16":
      return new Float16Array(buffer, offset, length);
    case "bf16":
      return new Uint16Array(buffer, offset, length);
    case "bytes":
      return new Uint8Array(buffer, offset, length);
  }
}

/**
 * Carries out what {@linkcode callingCommunicator} asks for, in the thread that has the connections: calls of one rank, in
 * their order.
 */
export function performer(communicator: Pick<Communicator, "group">): (call: CollectiveCall) => Promise<void> {
  const borrowed: Borrowed = new Map();
  return async (call) => {
    call.forget?.forEach((number) => borrowed.delete(number));
    await perform(communicator.group(call.group, call.ranks), call, (data) => open(data, borrowed));
  };
}

async function perform(group: Group, call: CollectiveCall, open: (data: SharedElements) => Elements): Promise<void> {
  switch (call.operator) {
    case "all-reduce":
      return await group.allReduce(open(call.data), call.reduction);
    case "reduce-scatter":
      return void await group.reduceScatter(open(call.data), call.counts);
    case "all-gather":
      return await group.allGather(open(call.data), call.counts);
    case "broadcast":
      return await group.broadcast(open(call.data), call.root);
    case "reduce":
      return await group.reduce(open(call.data), call.root);
    case "gather":
      return await group.gather(open(call.data), call.counts, call.root);
    case "all-to-all":
      return await group.allToAll(open(call.data), open(call.into), call.counts);
    case "barrier":
      return await group.barrier();
    case "send":
      return await group.send(call.peer, open(call.data));
    case "receive":
      return await group.receive(call.peer, open(call.data));
    default:
      call satisfies never;
  }
}

/**
 * Memory is handed over once, and known by a number from then on. To the other thread what is handed over is new each time:
 * sums in it would be compiled again, and gigabytes of it collected as garbage every few steps.
 */
class Lent {
  readonly #numbers = new WeakMap<SharedArrayBuffer, number>();
  readonly #gone: number[] = [];
  readonly #collected = new FinalizationRegistry<number>((number) => this.#gone.push(number));
  #next = 0;

  lend(buffer: SharedArrayBuffer): Pick<SharedElements, "number" | "memory"> {
    const known = this.#numbers.get(buffer);
    if (known !== undefined) return { number: known };
    const number = this.#next++;
    this.#numbers.set(buffer, number);
    this.#collected.register(buffer, number);
    return { number, memory: memoryOf(buffer) ?? buffer };
  }

  /** What was collected since it was asked the last time. */
  forget(): { readonly forget?: number[] } {
    return this.#gone.length > 0 ? { forget: this.#gone.splice(0) } : {};
  }
}

/** Shared memory for data that lies elsewhere, by size; returned when a call is over. */
class Rooms {
  readonly #free = new Map<number, SharedArrayBuffer[]>();

  take(bytes: number): SharedArrayBuffer {
    const size = 2 ** Math.ceil(Math.log2(Math.max(64, bytes)));
    return this.#free.get(size)?.pop() ?? new SharedArrayBuffer(size);
  }
  give(room: SharedArrayBuffer): void {
    const free = this.#free.get(room.byteLength);
    if (free) free.push(room);
    else this.#free.set(room.byteLength, [room]);
  }
}

/**
 * A communicator for a thread without connections. Data in shared memory is used where it lies; other data is copied there
 * and back.
 *
 * @param call hands a collective over; resolves when it is done
 */
export function callingCommunicator(
  rank: number,
  call: (call: CollectiveCall) => Promise<unknown>,
): Pick<Communicator, "group"> {
  const groups = new Map<string, Group>(), rooms = new Rooms(), memories = new Lent();
  type Shape = CollectiveCall extends infer Each
    ? Each extends unknown ? Omit<Each, "group" | "ranks" | "forget"> : never
    : never;

  const make = (name: string, ranks: readonly number[]): Group => {
    const index = ranks.indexOf(rank), size = ranks.length;
    if (index < 0) throw new RangeError(`Cannot use group ${name} on rank ${rank}: it is of ranks ${ranks.join(", ")}`);
    const post = async (shape: Shape) => {
      if (size > 1) await call({ group: name, ranks: [...ranks], ...shape, ...memories.forget() } as CollectiveCall);
    };
    /** Lends shared memory with the data in it, and copies back what came. */
    const lent = async (
      data: Elements,
      work: (shared: SharedElements) => Promise<void>,
      { goes = true, comes = true } = {},
    ) => {
      const { buffer, byteOffset, byteLength, length } = data, type = typeOf(data);
      if (size === 1) return;
      if (buffer instanceof SharedArrayBuffer) {
        return await work({ ...memories.lend(buffer), offset: byteOffset, length, type });
      }
      const memory = rooms.take(byteLength);
      const there = new Uint8Array(memory, 0, byteLength), here = new Uint8Array(buffer, byteOffset, byteLength);
      try {
        if (goes) there.set(here);
        await work({ ...memories.lend(memory), offset: 0, length, type });
        if (comes) here.set(there);
      } finally {
        rooms.give(memory);
      }
    };
    const other = (place: number): number => {
      if (place !== index && ranks[place] !== undefined) return place;
      throw new RangeError(`Place ${place} is not another of the ${size} places of group ${name}`);
    };
    return {
      name,
      ranks,
      index,
      allReduce: (data, reduction = "sum") => lent(data, (data) => post({ operator: "all-reduce", data, reduction })),
      async reduceScatter(data, counts) {
        await lent(data, (data) => post({ operator: "reduce-scatter", data, counts }));
        const bounds = counts
          ? counts.reduce((all, count) => [...all, all.at(-1)! + count], [0])
          : evenBounds(data.length, size);
        return data.subarray(bounds[index], bounds[index + 1]) as typeof data;
      },
      allGather: (data, counts) => lent(data, (data) => post({ operator: "all-gather", data, counts })),
      broadcast: (data, root) =>
        lent(data, (data) => post({ operator: "broadcast", data, root }), { comes: root !== index }),
      reduce: (data, root) => lent(data, (data) => post({ operator: "reduce", data, root }), { comes: root === index }),
      gather: (data, counts, root) =>
        lent(data, (data) => post({ operator: "gather", data, counts, root }), { comes: root === index }),
      async allToAll(from, into, counts) {
        if (size === 1) return into.set(from);
        await lent(
          from,
          (data) => lent(into, (into) => post({ operator: "all-to-all", data, into, counts }), { goes: false }),
          { comes: false },
        );
      },
      barrier: () => post({ operator: "barrier" }),
      async send(to, data) {
        const peer = other(to);
        await lent(data, (data) => post({ operator: "send", data, peer }), { comes: false });
      },
      async receive(from, into) {
        const peer = other(from);
        await lent(into, (data) => post({ operator: "receive", data, peer }), { goes: false });
      },
    };
  };
  return {
    group(name, ranks) {
      const key = `${name} ${ranks.join()}`, known = groups.get(key) ?? make(name, ranks);
      groups.set(key, known);
      return known;
    },
  };
}
