import { assertEquals } from "@std/assert";
import { listenControl } from "../src/comm/control.ts";
import { acceptHandshake } from "../src/comm/handshake.ts";
import { FlightRecorder } from "../src/observe/flight_recorder.ts";
import { communicator } from "./communicator.ts";
import { Progress } from "./progress.ts";
import { testRuntime } from "./runtime/mod.ts";

const hostname = "127.0.0.1", token = "secret";

Deno.test("communicator() ends its rank 4 s after the root is gone, and tells the rank at once", async () => {
  let said = Promise.withResolvers<void>();
  const control = listenControl({ hostname, port: 0, token, onValue: () => said.resolve() });
  const runtime = testRuntime();
  let kills = 0;
  const ref = runtime.spawn("communicator", communicator({ kill: () => kills++ }));
  const memory = { progress: new Progress().memory, recorder: new FlightRecorder().memory };
  const joined = ref.ask({ kind: "join", hostname, port: control.port, token, rank: 3, attempt: 1, ...memory });
  await runtime.settle(joined);
  let lost = false;
  const told = ref.ask({ kind: "lost" }, { timeoutMs: Infinity }).then(() => lost = true);
  for (let beat = 0; beat < 60; beat++) {
    await said.promise;
    said = Promise.withResolvers();
    await runtime.advance(1000);
  }
  assertEquals([lost, kills], [false, 0]);

  await control[Symbol.asyncDispose]();
  await told;
  await runtime.settle();
  await runtime.advance(3999);
  assertEquals(kills, 0);
  await runtime.advance(1);
  assertEquals(kills, 1);
  await runtime.stop();
});

Deno.test("communicator() leaves a root that holds its connection and answers nothing, as a stopped process does", async () => {
  const listener = Deno.listen({ hostname, port: 0 });
  const accepted = listener.accept().then(async (connection) => {
    await acceptHandshake(connection, { token });
    return connection;
  });
  const runtime = testRuntime();
  let kills = 0;
  const ref = runtime.spawn("communicator", communicator({ kill: () => kills++ }));
  const memory = { progress: new Progress().memory, recorder: new FlightRecorder().memory };
  const { port } = listener.addr as Deno.NetAddr;
  await runtime.settle(ref.ask({ kind: "join", hostname, port, token, rank: 0, attempt: 1, ...memory }));
  const lost = ref.ask({ kind: "lost" }, { timeoutMs: Infinity });
  let told = false;
  lost.then(() => told = true);
  await runtime.advance(9000);
  assertEquals(told, false);
  await runtime.advance(1000);
  assertEquals(await lost, "the root has not answered for 10 s");
  await runtime.settle();
  await runtime.advance(4000);
  assertEquals(kills, 1);
  await runtime.stop();
  (await accepted).close();
  listener.close();
});
