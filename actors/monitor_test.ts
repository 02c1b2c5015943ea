import { assertEquals, assertMatch } from "@std/assert";
import { Display } from "../src/observe/display.ts";
import { makeRunFolder, runFolderAt } from "../src/observe/run_folder.ts";
import { monitor } from "./monitor.ts";
import { createRuntime } from "./runtime/mod.ts";

Deno.test("metrics and a curve that cannot be written are told of; the run is shown all the same, and no file is named", async () => {
  const path = await Deno.makeTempDir(), folder = runFolderAt(path), said: string[] = [];
  makeRunFolder(folder);
  const output = { isTerminal: false, columns: () => 80, write: (text: string) => void said.push(text) };
  const runtime = createRuntime();
  try {
    for (const file of [folder.metrics, folder.lossPlot]) Deno.mkdirSync(file); // folders where the files would be
    const options = { folder, totalSteps: 2, title: "t", json: false, display: new Display({ output }) };
    const ref = runtime.spawn("monitor", monitor(options));
    ref.send({ kind: "begin", step: 0, batch: 0 });
    const step = { gradNorm: 1, learningRate: 1, tokensPerSecond: 1, memory: 1, success: true };
    for (const at of [1, 2]) ref.send({ kind: "step", step: at, batch: at - 1, loss: 3 - at, ...step });
    const { drawn, file } = await ref.ask({ kind: "finish" });
    assertMatch(drawn!, /loss/);
    assertEquals(file, undefined);
    assertMatch(said.join(""), /^ALERT Cannot write metrics to .*metrics\.jsonl: Is a directory$/m);
    assertMatch(said.join(""), /^step 2\/2 {2}loss 1\.0000/m);
    assertMatch(said.join(""), /^ALERT Cannot write .*loss\.svg: Is a directory$/m);
  } finally {
    await runtime.stop();
    await Deno.remove(path, { recursive: true });
  }
});
