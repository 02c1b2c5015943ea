import { assertEquals, assertRejects } from "@std/assert";
import { createCommunicator, type Group } from "../comm/collectives/communicator.ts";
import { CommunicationError } from "../comm/transport/link.ts";
import { simulatedWorld } from "../comm/transport/simulated.ts";
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

Deno.test("ranks that wait for their turn hear of a rank that fails in its own", async () => {
  const world = simulatedWorld(3);
  const turns = world.map((transport) => new Turn(createCommunicator(transport).group("device", [0, 1, 2])));
  const waiting = turns.slice(1).map((turn) =>
    assertRejects(() => drive(turn.begin()), CommunicationError, "out of memory")
  );
  await drive(turns[0]!.begin()); // the first one need not wait
  world[0]!.abort("rank 0 failed: out of memory");
  await Promise.all(waiting);
  await Promise.all(world.map((transport) => transport.close()));
});
