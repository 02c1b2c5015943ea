import { assertEquals, assertMatch } from "@std/assert";
import { Display } from "../src/observe/display.ts";
import { readJsonLines } from "../src/observe/jsonl.ts";
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

Deno.test("a monitor goes on in the metrics of the one before it, and its curve is that of the whole run", async () => {
  const path = await Deno.makeTempDir(), folder = runFolderAt(path);
  makeRunFolder(folder);
  const output = { isTerminal: false, columns: () => 80, write: () => {} };
  const runtime = createRuntime();
  const written = () => [...readJsonLines(folder.metrics)].map(({ step_count }) => step_count);
  const step = { gradNorm: 1, learningRate: 1, tokensPerSecond: 1, memory: 1, success: true };
  const start = (name: string, continues: boolean) =>
    runtime.spawn(
      name,
      monitor({ folder, totalSteps: 9, title: "", json: false, continues, display: new Display({ output }) }),
    );
  try {
    const first = start("first", false);
    first.send({ kind: "begin", step: 0, batch: 0 });
    for (const at of [1, 2, 3]) first.send({ kind: "step", step: at, batch: at + 1, loss: 8 / at, ...step }); // two were skipped
    first.send({
      kind: "validation",
      step: 3,
      batch: 4,
      records: [{ loss: 5, record: { "val/en_loss": 5, step: 3 } }],
    });
    assertEquals(await first.ask({ kind: "progress" }), { step: 3 });
    await runtime.stopActor(first);

    const second = start("second", true);
    assertEquals(await second.ask({ kind: "progress" }), { step: 3 });
    second.send({ kind: "step", step: 4, batch: 5, loss: 2, ...step });
    const { drawn } = await second.ask({ kind: "finish" });
    assertEquals(written(), [1, 2, 3, 3, 4]);
    assertMatch(drawn!, /^ +1 +step +4$/m);
    assertMatch(Deno.readTextFileSync(folder.lossPlot), /validation/);

    // As a run does that is resumed after step 2.
    const third = start("third", false);
    third.send({ kind: "begin", step: 2, batch: 4 });
    third.send({ kind: "step", step: 3, batch: 4, loss: 1, ...step });
    assertMatch((await third.ask({ kind: "finish" })).drawn!, /^ +1 +step +3$/m);
    assertEquals(written(), [1, 2, 3]);
  } finally {
    await runtime.stop();
    await Deno.remove(path, { recursive: true });
  }
});
