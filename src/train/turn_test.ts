import { assertEquals } from "@std/assert";
import type { Group } from "../comm/collectives/communicator.ts";
import { drive } from "../graph/program.ts";
import { solo } from "../parallel/world.ts";
import { Turn } from "./turn.ts";

Deno.test("the next rank hears that it is its turn before this one blocks its thread again", async () => {
  const done: string[] = [];
  const group: Group = {
    ...solo.group("data"),
    ranks: [0, 1],
    // As a communicator in a worker is asked: several promises later the message leaves.
    async send() {
      for (let hop = 0; hop < 20; hop++) await null;
      done.push("the message left");
    },
  };
  const ticket = (what: string) => ({
    wait() {},
    take: () => [],
    ready: () => Promise.resolve(void done.push(what)),
  });
  const turn = new Turn(group);
  await drive(function* () {
    yield* turn.handOn(() => ticket("the device is through"));
    yield ticket("the thread blocks");
    yield* turn.end();
  }());
  assertEquals(done, ["the device is through", "the message left", "the thread blocks"]);
});
