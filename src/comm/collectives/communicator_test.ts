import { assert, assertEquals, assertRejects, assertStringIncludes } from "@std/assert";
import { FakeTime } from "@std/testing";
import { onAllRanks, simulatedWorld, tcpWorld } from "../_testing.ts";
import { CommunicationError } from "../transport/link.ts";
import { evenBounds } from "./algorithms.ts";
import { type Communicator, createCommunicator, type Group } from "./communicator.ts";
import { createTransport } from "../transport/transport.ts";
import { type Elements, narrow, widen } from "./elements.ts";

/** Whole numbers, whose sums no order of summation changes; each rank has its own. */
const value = (rank: number, i: number) => (i * 7 + rank * 3) % 16;
const sums = (world: number, length: number) => {
  const all = new Float32Array(length);
  for (let rank = 0; rank < world; rank++) for (let i = 0; i < length; i++) all[i]! += value(rank, i);
  return all;
};

type Maker = { readonly name: string; readonly make: (length: number) => Elements };
const types: Maker[] = [
  { name: "f32", make: (length) => new Float32Array(new SharedArrayBuffer(4 * length)) },
  { name: "f16", make: (length) => new Float16Array(length) },
  { name: "bf16", make: (length) => new Uint16Array(length) },
];
function fill(data: Elements, of: (i: number) => number): Elements {
  narrow(Float32Array.from({ length: data.length }, (_, i) => of(i)), data);
  return data;
}
function numbers(data: Elements): Float32Array {
  const wide = new Float32Array(data.length);
  widen(data, wide);
  return wide;
}

/** Faster than a comparison that prepares a report: the first difference says enough. */
function same(actual: Float32Array, expected: ArrayLike<number>): void {
  const i = actual.findIndex((number, i) => number !== expected[i]);
  assertEquals([actual.length, i, actual[i]], [expected.length, -1, expected[i < 0 ? -1 : i]]);
}

async function everyCollective(communicator: Communicator, world: number, { make }: Maker, length: number) {
  const { rank } = communicator.transport, ranks = Array.from({ length: world }, (_, i) => i);
  const group = communicator.group("data", ranks);
  const all = sums(world, length), expected = (begin = 0, end = length) => all.subarray(begin, end);
  const own = () => fill(make(length), (i) => value(rank, i));

  const reduced = own();
  await group.allReduce(reduced);
  same(numbers(reduced), expected());

  const most = own();
  await group.allReduce(most, "max");
  same(numbers(most), expected().map((_, i) => Math.max(...ranks.map((other) => value(other, i)))));

  const bounds = evenBounds(length, world);
  same(numbers(await group.reduceScatter(own())), expected(bounds[rank], bounds[rank + 1]));

  const uneven = ranks.map((i) => i === world - 1 ? length : 0);
  same(numbers(await group.reduceScatter(own(), uneven)), rank === world - 1 ? expected() : []);

  const gathered = fill(make(length), (i) => i >= bounds[rank]! && i < bounds[rank + 1]! ? value(rank, i) : 99);
  await group.allGather(gathered);
  const ownerOf = (i: number) => bounds.findIndex((_, owner) => i < bounds[owner + 1]!);
  same(numbers(gathered), expected().map((_, i) => value(ownerOf(i), i)));

  for (const root of new Set([0, world - 1])) {
    const sent = own();
    await group.broadcast(sent, root);
    same(numbers(sent), expected().map((_, i) => value(root, i)));

    const parts = fill(make(length), (i) => i >= bounds[rank]! && i < bounds[rank + 1]! ? value(rank, i) : 99);
    const before = numbers(parts);
    await group.gather(parts, undefined, root);
    same(numbers(parts), rank === root ? expected().map((_, i) => value(ownerOf(i), i)) : before);

    const toRoot = own();
    await group.reduce(toRoot, root);
    if (rank === root) same(numbers(toRoot), expected());
  }

  // Rank a sends (a + b) % 3 · k elements to rank b.
  const k = Math.max(1, Math.floor(length / world / 3)), count = (a: number, b: number) => (a + b) % 3 * k;
  const from = ranks.map((to) => count(rank, to)), into = ranks.map((of) => count(of, rank));
  const total = (counts: number[]) => counts.reduce((a, b) => a + b, 0);
  const out = fill(make(total(from)), () => rank % 16), back = make(total(into));
  await group.allToAll(out, back, { from, into });
  same(numbers(back), ranks.flatMap((of) => new Array(count(of, rank)).fill(of % 16)));

  await group.barrier();
  const next = (rank + 1) % world, previous = (rank + world - 1) % world, message = make(length);
  if (world > 1) {
    await Promise.all([group.send(next, own()), group.receive(previous, message)]);
    same(numbers(message), expected().map((_, i) => value(previous, i)));
  }
}

for (const world of [1, 2, 3, 4]) {
  for (const type of types) {
    Deno.test(`collectives over TCP agree with sums by hand: ${world} ranks, ${type.name}`, async () => {
      await onAllRanks(await tcpWorld(world), async (communicator) => {
        for (const length of [1, 5, 33_001]) await everyCollective(communicator, world, type, length);
      });
    });
  }
}

Deno.test("collectives over TCP send messages of many frames", async () => {
  await onAllRanks(await tcpWorld(3), async (communicator) => {
    await everyCollective(communicator, 3, types[0]!, 1_000_003);
  });
});

Deno.test("a ring hands on pieces before a chunk is whole, and adds in the order of places all the same", async () => {
  const world = 3, counts = [700_001, 0, 300_002], length = 1_000_003;
  const term = (rank: number, i: number) => Math.fround(Math.sin(i + 1) * 10 ** (rank * 3 + i % 5));
  const expected = (owner: number, i: number) =>
    // it begins with the place behind the owner's
    [1, 2, 3].map((hop) => term((owner + hop) % world, i)).reduce((sum, each) => Math.fround(each + sum));
  await onAllRanks(await tcpWorld(world), async (communicator, rank) => {
    const data = Float32Array.from({ length }, (_, i) => term(rank, i));
    const own = await communicator.group("data", [0, 1, 2]).reduceScatter(data, counts);
    const begin = counts.slice(0, rank).reduce((a, b) => a + b, 0);
    same(own, Array.from({ length: counts[rank]! }, (_, i) => expected(rank, begin + i)));
  });
});

Deno.test("collectives over encrypted frames agree with sums by hand", async () => {
  await onAllRanks(await tcpWorld(3, { encrypt: true }), async (communicator) => {
    for (const length of [3, 100_001]) await everyCollective(communicator, 3, types[0]!, length);
  });
});

for (const [world, length] of [[5, 20_000], [64, 70]] as const) {
  Deno.test(`collectives in one process agree with sums by hand: ${world} ranks`, async () => {
    await onAllRanks(simulatedWorld(world), async (communicator) => {
      for (const type of world === 64 ? types.slice(0, 1) : types) {
        await everyCollective(communicator, world, type, length);
      }
    });
  });
}

Deno.test("allReduce() gives every rank the same bits, and the same again", async () => {
  const once = () =>
    onAllRanks(simulatedWorld(7), async (communicator, rank) => {
      const group = communicator.group("data", [0, 1, 2, 3, 4, 5, 6]);
      const texts: string[] = [];
      for (const { make } of types) {
        for (const length of [100, 30_000]) {
          const data = fill(make(length), (i) => Math.sin(i * 0.7 + rank) * 10 ** (i % 5));
          await group.allReduce(data);
          texts.push(numbers(data).join());
        }
      }
      return texts.join(";");
    });
  const [first, second] = [await once(), await once()];
  assertEquals(new Set([...first, ...second]).size, 1);
});

Deno.test("allReduce() sums half types in float32 and rounds once", async () => {
  const world = 5;
  await onAllRanks(simulatedWorld(world), async (communicator, rank) => {
    // 2048 + 1 is 2048 in float16: four ones are lost one by one, and kept together.
    for (const length of [10, 40_000]) {
      const data = new Float16Array(length).fill(rank === 0 ? 2048 : 1);
      await communicator.group("data", [0, 1, 2, 3, 4]).allReduce(data);
      assertEquals(new Set(data), new Set([2052]));
    }
  });
});

Deno.test("groups of one world work at the same time, each in its own order", async () => {
  await onAllRanks(await tcpWorld(4), async (communicator, rank) => {
    const row = communicator.group("row", rank < 2 ? [0, 1] : [2, 3]);
    const column = communicator.group("column", rank % 2 === 0 ? [0, 2] : [1, 3]);
    const data = Array.from({ length: 6 }, () => new Float32Array(60_000).fill(rank));
    const pending = data.map((each, i) => (i % 2 === 0 ? row : column).allReduce(each));
    await Promise.all(rank === 0 ? pending.toReversed() : pending);
    data.forEach((each, i) => {
      const expected = i % 2 === 0 ? (rank < 2 ? 1 : 5) : (rank % 2 === 0 ? 2 : 4);
      assertEquals(new Set(each), new Set([expected]));
    });
  });
});

Deno.test("a rank far ahead is held up, and the late one gets all it was sent", async () => {
  const messages = 120, bytes = 256 << 10; // more than a receiver keeps unasked
  await onAllRanks(await tcpWorld(2), async (communicator, rank) => {
    const group = communicator.group("data", [0, 1]), { transport } = communicator;
    while (rank === 1 && transport.bytesMoved() < 15 << 20) await new Promise((resolve) => setTimeout(resolve));
    for (let i = 0; i < messages; i++) {
      const data = new Uint8Array(bytes).fill(rank === 0 ? i : 255);
      await group.broadcast(data, 0);
      assertEquals([data[0], data[bytes - 1]], [i, i]);
    }
  });
});

for (const [what, length] of [["small", 10], ["large", 400_000]] as const) {
  Deno.test(`ranks that disagree on a ${what} collective are both named, and all ranks hear of it`, async () => {
    await onAllRanks(await tcpWorld(3), async (communicator, rank) => {
      const group = communicator.group("data", [0, 1, 2]), data = new Float32Array(length);
      const error = await assertRejects(
        () => rank === 1 ? group.allReduce(new Float32Array(length + 1)) : group.allReduce(data),
        CommunicationError,
        "Ranks disagree",
      );
      assertStringIncludes(error.message, `${length} f32`);
      assertStringIncludes(error.message, `${length + 1} f32`);
      assertStringIncludes(error.message, "rank 1");
      // Nothing goes on after it.
      await assertRejects(() => group.barrier(), CommunicationError);
    });
  });
}

Deno.test("ranks that disagree on the operator, type or root find out", async () => {
  const odd: ((group: ReturnType<Communicator["group"]>) => Promise<unknown>)[] = [
    (group) => group.reduceScatter(new Float32Array(100)),
    (group) => group.allReduce(new Float16Array(100)),
    (group) => group.allReduce(new Float32Array(100), "max"),
  ];
  for (const work of odd) {
    await onAllRanks(simulatedWorld(2), async (communicator, rank) => {
      const group = communicator.group("data", [0, 1]);
      await assertRejects(
        () => rank === 0 ? group.allReduce(new Float32Array(100)) : work(group),
        CommunicationError,
        "Ranks disagree",
      );
    });
  }
});

const missing = "rank 2 is not there yet, its last was all-reduce #0 (sum of 4 f32) of data, finished";

Deno.test("a rank that is late is named once, with its last collective, and waited for", async () => {
  const late: string[] = [], { promise: told, resolve } = Promise.withResolvers<void>();
  const onLate = (report: string) => {
    late.push(report);
    if (late.length === 2) resolve();
  };
  await onAllRanks(await tcpWorld(3), async (communicator, rank) => {
    const group = communicator.group("data", [0, 1, 2]), data = new Float32Array(8).fill(rank);
    await group.allReduce(new Float32Array(4));
    if (rank === 2) await told;
    await group.allReduce(data);
    assertEquals(data[7], 3);
  }, { patienceMs: 20, onLate });
  for (const rank of [0, 1]) {
    assert(late.includes(`Rank ${rank} waits in all-reduce #1 (sum of 8 f32) of data: ${missing}`), late.join("\n"));
  }
});

Deno.test("a rank that does not come is not waited for beyond the limit, though it answers", async () => {
  const { promise: over, resolve } = Promise.withResolvers<void>();
  await onAllRanks(await tcpWorld(3), async (communicator, rank) => {
    const group = communicator.group("data", [0, 1, 2]);
    await group.allReduce(new Float32Array(4));
    if (rank === 2) return await over;
    await assertRejects(() => group.allReduce(new Float32Array(8)), CommunicationError, missing);
    resolve();
  }, { patienceMs: 20, timeoutMs: 60 });
});

const waits: [string, (group: Group) => Promise<unknown>][] = [
  ["in a collective", (group) => group.allReduce(new Float32Array(4))],
  ["for a word of that rank", (group) => group.receive(1, new Float32Array(1))],
];
for (const [where, wait] of waits) {
  Deno.test(`a rank that says nothing is gone after 4.5 s, by the clock of the one who waits ${where}`, async () => {
    const silent = {
      write: () => Promise.resolve(),
      read: () => new Promise<null>(() => {}),
      readBody: () => Promise.resolve(),
      close: () => {},
    };
    // As long as nothing is awaited that needs a timer, the clock may be held.
    using time = new FakeTime();
    const transport = createTransport({ rank: 0, world: 2, streams: new Map([[1, silent]]) });
    let end = "";
    wait(createCommunicator(transport).group("data", [0, 1])).catch(({ message }) => end = message);
    const pass = async (milliseconds: number) => {
      for (let passed = 0; passed < milliseconds; passed += 50) {
        for (let turn = 0; turn < 20; turn++) await Promise.resolve();
        time.tick(50);
      }
      for (let turn = 0; turn < 20; turn++) await Promise.resolve();
    };
    await pass(4450);
    assertEquals(end, "");
    await pass(50);
    assertStringIncludes(end, "rank 1 does not answer, its last was nothing yet");
  });
}

Deno.test("an abort reaches every rank at once, whatever it waits for", async () => {
  await onAllRanks(await tcpWorld(4), async (communicator, rank) => {
    const group = communicator.group("data", [0, 1, 2, 3]);
    if (rank === 3) {
      communicator.transport.abort("Rank 3 stops: not a number");
      return;
    }
    await assertRejects(() => group.allReduce(new Float32Array(100_000)), CommunicationError, "not a number");
    assertEquals((await communicator.transport.aborted).message, "Rank 3 stops: not a number");
  });
});

Deno.test("what is begun after an abort fails at once, and leaves nothing that nobody waits for", async () => {
  await onAllRanks(simulatedWorld(4), async (communicator, rank) => {
    const group = communicator.group("data", [0, 1, 2, 3]);
    communicator.transport.abort(`Rank ${rank} stops`);
    for (let i = 0; i < 2; i++) {
      await assertRejects(() => group.allReduce(new Float32Array(100_000)), CommunicationError, "stops");
    }
  });
});

Deno.test("Group refuses what cannot be done, without a word to the others", async () => {
  await onAllRanks(simulatedWorld(2), async (communicator, rank) => {
    const group = communicator.group("data", [0, 1]);
    await assertRejects(() => group.allReduce(new Uint8Array(4)), TypeError, "Cannot sum bytes");
    await assertRejects(() => group.broadcast(new Float32Array(1), 2), RangeError, "Root 2");
    await assertRejects(() => group.allGather(new Float32Array(4), [1, 1]), RangeError, "[1,1]");
    const data = Float32Array.of(rank);
    await group.allReduce(data);
    assertEquals(data[0], 1);
  });
});
