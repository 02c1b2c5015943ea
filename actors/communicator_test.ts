import { assertEquals } from "@std/assert";
import { listenControl } from "../src/comm/control.ts";
import { FlightRecorder } from "../src/observe/flight_recorder.ts";
import { communicator } from "./communicator.ts";
import { Progress } from "./progress.ts";
import { testRuntime } from "./runtime/mod.ts";

Deno.test("communicator() ends its rank 4 s after the root is gone, and tells the rank at once", async () => {
  const hostname = "127.0.0.1", token = "secret", heard: unknown[] = [];
  const control = listenControl({ hostname, port: 0, token, onValue: (value) => heard.push(value) });
  const runtime = testRuntime();
  let kills = 0;
  const ref = runtime.spawn("communicator", communicator({ kill: () => kills++ }));
  const memory = { progress: new Progress().memory, recorder: new FlightRecorder().memory };
  const joined = ref.ask({ kind: "join", hostname, port: control.port, token, rank: 3, attempt: 1, ...memory });
  await runtime.settle(joined);
  let lost = false;
  const told = ref.ask({ kind: "lost" }, { timeoutMs: Infinity }).then(() => lost = true);
  await runtime.advance(60_000);
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
