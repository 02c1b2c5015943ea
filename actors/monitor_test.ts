import { assertEquals, assertMatch } from "@std/assert";
import { Display } from "../src/observe/display.ts";
import { makeRunFolder, runFolderAt } from "../src/observe/run_folder.ts";
import { monitor } from "./monitor.ts";
import { createRuntime } from "./runtime/mod.ts";

Deno.test("a curve that cannot be written is told of, drawn all the same, and no file is named", async () => {
  const path = await Deno.makeTempDir(), folder = runFolderAt(path), said: string[] = [];
  makeRunFolder(folder);
  const output = { isTerminal: false, columns: () => 80, write: (text: string) => void said.push(text) };
  const runtime = createRuntime();
  try {
    Deno.mkdirSync(folder.lossPlot); // where the file would be
    const options = { folder, totalSteps: 2, title: "t", json: false, display: new Display({ output }) };
    const ref = runtime.spawn("monitor", monitor(options));
    ref.send({ kind: "begin", step: 0, batch: 0 });
    const step = { gradNorm: 1, learningRate: 1, tokensPerSecond: 1, memory: 1, success: true };
    for (const at of [1, 2]) ref.send({ kind: "step", step: at, batch: at - 1, loss: 3 - at, ...step });
    const { drawn, file } = await ref.ask({ kind: "finish" });
    assertMatch(drawn!, /loss/);
    assertEquals(file, undefined);
    assertMatch(said.join(""), /^ALERT Cannot write .*loss\.svg: /m);
  } finally {
    await runtime.stop();
    await Deno.remove(path, { recursive: true });
  }
});
