import { assertEquals, assertRejects } from "@std/assert";
import { onAllRanks, simulatedWorld } from "../_testing.ts";
import { callingCommunicator, type CollectiveCall, performer } from "./calls.ts";

const world = 3, ranks = [0, 1, 2];

Deno.test("every collective comes to the same by calls, of data in shared memory and elsewhere", async () => {
  const results = (posted: boolean, shared: boolean) =>
    onAllRanks(simulatedWorld(world), async (own, rank) => {
      const perform = performer(own);
      const communicator = posted
        ? callingCommunicator(rank, (call) => perform(structuredClone(call) as CollectiveCall))
        : own;
      const group = communicator.group("data", ranks);
      const make = (...values: number[]) =>
        shared ? new Float32Array(new SharedArrayBuffer(4 * values.length)) : new Float32Array(values.length);
      const filled = (...values: number[]) => {
        const data = make(...values);
        data.set(values);
        return data;
      };
      const all: number[][] = [];
      const keep = (data: Float32Array) => void all.push([...data]);
      const sum = filled(rank, 1, 2), most = filled(rank, -rank);
      await group.allReduce(sum);
      await group.allReduce(most, "max");
      keep(sum);
      keep(most);
      keep(await group.reduceScatter(filled(1, 2, 3, 4, rank)));
      keep(await group.reduceScatter(filled(1, 2, 3, rank), [0, 3, 1]));
      const gathered = filled(0, 0, 0, 0);
      gathered[rank] = rank + 1;
      await group.allGather(gathered, [1, 1, 2]);
      keep(gathered);
      const told = filled(rank, rank);
      await group.broadcast(told, 1);
      keep(told);
      const parts = filled(rank, rank, rank, rank);
      await group.gather(parts, [1, 1, 2], 2);
      keep(parts);
      const atRoot = filled(rank, 1);
      await group.reduce(atRoot, 2);
      if (rank === 2) keep(atRoot);
      const into = filled(9, 9, 9);
      await group.allToAll(filled(10 * rank, 10 * rank + 1, 10 * rank + 2), into);
      keep(into);
      await group.barrier();
      if (rank === 0) await group.send(2, filled(7, 8));
      if (rank === 2) {
        const received = filled(0, 0);
        await group.receive(0, received);
        keep(received);
      }
      const alone = communicator.group("alone", [rank]), same = filled(rank);
      await alone.allReduce(same);
      await alone.barrier();
      keep(same);
      return all;
    });
  const expected = await results(false, false);
  assertEquals(await results(true, false), expected);
  assertEquals(await results(true, true), expected);
});

Deno.test("a call of a rank that is not of the group, or to no other place, is refused", async () => {
  const communicator = callingCommunicator(1, () => Promise.resolve());
  await assertRejects(async () => await communicator.group("data", [0, 2]).barrier(), RangeError, "on rank 1");
  await assertRejects(
    async () => await communicator.group("data", [0, 1]).send(1, new Float32Array(1)),
    RangeError,
    "not another",
  );
});

Deno.test("shared memory is handed over once, and then known by its number", async () => {
  const calls: CollectiveCall[] = [];
  const group = callingCommunicator(0, (call) => Promise.resolve(calls.push(call))).group("data", [0, 1]);
  const first = new SharedArrayBuffer(16), second = new SharedArrayBuffer(16);
  await assertRejects(async () => await group.send(0, new Uint8Array(second)), RangeError); // lends nothing
  for (const buffer of [first, second, first]) await group.allReduce(new Float32Array(buffer, 4, 2));
  await group.send(1, new Uint8Array(second));
  assertEquals(calls.map((call) => "data" in call && [call.data.number, call.data.memory]), [
    [0, first],
    [1, second],
    [0, undefined],
    [1, undefined],
  ]);
});
