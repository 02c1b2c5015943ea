/**
 * A rank of a test, in a process of its own: sums until it is told otherwise. Prints one JSON line a round, and at last
 * why it ended. Arguments: rank, world, port of the root, rounds, and the path of its Unix socket if it may have one.
 */
import { createCommunicator } from "./collectives/communicator.ts";
import { joinWorld } from "./transport/rendezvous.ts";

if (import.meta.main) {
  const [rank, world, port, rounds] = Deno.args.map(Number) as [number, number, number, number];
  const hostname = "127.0.0.1", socket = Deno.args[4], root = { hostname, port };
  const transport = await joinWorld({ rank, world, token: "secret", root, hostname, socket });
  const communicator = createCommunicator(transport, { patienceMs: 300, answerMs: 300 });
  const group = communicator.group("data", Array.from({ length: world }, (_, i) => i));
  try {
    for (let round = 0; round < rounds; round++) {
      const data = new Float32Array(100_000).fill(rank + round);
      await group.allReduce(data);
      console.log(JSON.stringify({ round, sum: data[99_999] }));
    }
    console.log(JSON.stringify({ end: "finished" }));
  } catch (error) {
    console.log(JSON.stringify({ end: (error as Error).message }));
  }
  await transport.close(200);
}
