import { assert, assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { Display, renderPlainStatus, renderStatus, type TrainingStatus } from "./display.ts";
import { countOf, formatBytes, formatCount, formatDuration, formatLoss } from "./format.ts";

const status: TrainingStatus = {
  step: 90,
  totalSteps: 200,
  loss: 3.21453,
  validationLoss: 3.4,
  learningRate: 3e-4,
  gradNorm: 1.234,
  tokensPerSecond: 12345,
  secondsLeft: 80,
  memory: 512 * 2 ** 20,
};
// deno-lint-ignore no-control-regex -- colours are control characters
const withoutColor = (text: string) => text.replace(/\x1b\[[0-9;]*m/g, "");

Deno.test("renderStatus() fits every width, with and without colour, and loses no field as it widens", () => {
  let fields = 0;
  for (let columns = 20; columns <= 200; columns++) {
    const line = renderStatus(status, columns);
    assert([...line].length <= columns, `${columns}: ${line}`);
    assertEquals(
      withoutColor(renderStatus(status, columns, { color: true })).replaceAll("━", "─"),
      line.replaceAll("━", "─"),
    );
    const now = line.split("  ").filter((part) => part.trim() !== "" && !part.includes("%")).length;
    if (columns !== 40) assert(now >= fields, `${columns} columns show fewer fields: ${line}`); // the bar enters at 40
    fields = now;
  }
  assertStringIncludes(
    renderStatus(status, 200),
    "45%  step 90/200  loss 3.2145  val 3.4000  lr 3.00e-4  norm 1.23  12.3k tok/s  1m 20s left  512 MiB",
  );
});

Deno.test("renderStatus() keeps step and loss where there is room for little", () => {
  assertEquals(renderStatus(status, 20), "90/200  loss 3.2145");
  assertEquals(renderStatus(status, 4), "90/2");
  assertEquals(renderStatus({ step: 1, totalSteps: 2 }, NaN).includes("step 1/2"), true);
});

Deno.test("renderStatus() draws an empty, a half and a full bar", () => {
  const bar = (step: number) => renderStatus({ step, totalSteps: 10 }, 60).split(" ")[0];
  assertEquals([bar(0), bar(5), bar(10), bar(99)], [
    "─".repeat(30),
    "━".repeat(15) + "─".repeat(15),
    "━".repeat(30),
    "━".repeat(30),
  ]);
  assertStringIncludes(renderStatus({ step: 0, totalSteps: 0 }, 60), "  0%  step 0/0");
});

Deno.test("renderStatus() paints a loss that is no number red", () => {
  assertStringIncludes(renderStatus({ ...status, loss: NaN }, 120, { color: true }), "\x1b[31mNaN\x1b[0m");
});

Deno.test("Display shows a phase at once on a terminal, though a step was just drawn; a log has it where it lasts", () => {
  let shown = "", at = 0;
  const output = { isTerminal: true, columns: () => 100, write: (text: string) => void (shown += text) };
  const now = () => at;
  {
    using display = new Display({ output, color: false, now });
    display.update({ step: 0, totalSteps: 9, phase: "starting" });
    display.update({ step: 1, totalSteps: 9, loss: 2 });
    display.update({ step: 1, totalSteps: 9, loss: 2, phase: "evaluating" });
  }
  const drawn = shown.split("\x1b[2K").map((line) => line.replace(/^\S+ +\d+% +/, ""));
  assertMatch(drawn[1]!, /^starting {2}step 0\/9/);
  assertMatch(drawn[3]!, /^evaluating {2}step 1\/9/);

  shown = "";
  const log = new Display({ output: { ...output, isTerminal: false }, now });
  log.update({ step: 0, totalSteps: 9, phase: "starting" });
  assertEquals(shown, "");
  at = 5000;
  log.update({ step: 0, totalSteps: 9, phase: "opening the device" });
  assertEquals(shown, "opening the device  step 0/9\n");
  log.update({ step: 1, totalSteps: 9, loss: 2 });
  assertMatch(shown, /step 1\/9 {2}loss 2\.0000\n$/);
  at = 9000;
  log.update({ step: 2, totalSteps: 9, loss: 2 });
  at = 11_000;
  log.update({ step: 3, totalSteps: 9, loss: 2 });
  assertMatch(shown, /step 3\/9 {2}loss 2\.0000 {2}18s left\n$/); // of steps alone: 3 s each
});

Deno.test("Display estimates the time left anew where a run goes back to a checkpoint", () => {
  const { display, seen } = watched({ isTerminal: false, everySeconds: 0 });
  for (const [step, at] of [[1, 0], [2, 1], [3, 2], [2, 100], [3, 101]] as const) {
    seen.now = at * 1000;
    display.update({ step, totalSteps: 9 });
  }
  assertMatch(seen.people, /step 3\/9 {2}6s left\nstep 2\/9\nstep 3\/9 {2}6s left\n$/);
});

Deno.test("Display leaves no line of a run that took no step", () => {
  let shown = "";
  const output = { isTerminal: true, columns: () => 100, write: (text: string) => void (shown += text) };
  {
    using display = new Display({ output });
    display.update({ step: 0, totalSteps: 9, phase: "starting" });
  }
  assert(shown.endsWith("\r\x1b[2K"), JSON.stringify(shown));
});

Deno.test("renderPlainStatus() names the phase and leaves out what is unknown", () => {
  assertEquals(renderPlainStatus({ step: 1, totalSteps: 2, phase: "saving" }), "saving  step 1/2");
});

Deno.test("formats keep three digits that count", () => {
  assertEquals([0, 987.4, 999.6, 12345, 99960, 4.56e6, 1e16].map(formatCount), [
    "0",
    "987",
    "1.00k",
    "12.3k",
    "100k",
    "4.56M",
    "1.00e+16",
  ]);
  assertEquals([1, 1023.6, 512 * 2 ** 20, 1.5 * 2 ** 30, 2 ** 42].map(formatBytes), [
    "1 B",
    "1 KiB",
    "512 MiB",
    "1.50 GiB",
    "4.00 TiB",
  ]);
  assertEquals([0.4, 59.6, 80, 7500, 273_600, Infinity].map(formatDuration), [
    "0s",
    "1m 00s",
    "1m 20s",
    "2h 05m",
    "3d 04h",
    "?",
  ]);
  assertEquals([0, 1, 1888].map((count) => countOf(count, "row")), ["0 rows", "1 row", "1,888 rows"]);
  assertEquals([3.21453, 123.45, 1.234e7, NaN].map(formatLoss), ["3.2145", "123.5", "1.23e+7", "NaN"]);
});

/** A display on outputs that can be looked at, and a clock that can be moved. */
function watched(options: { isTerminal: boolean; json?: boolean; everySeconds?: number; color?: boolean }) {
  const seen = { people: "", programs: "", now: 0 };
  const output = {
    isTerminal: options.isTerminal,
    columns: () => 61,
    write: (text: string) => void (seen.people += text),
  };
  const jsonOutput = { write: (text: string) => void (seen.programs += text) };
  const display = new Display({ color: false, ...options, output, jsonOutput, now: () => seen.now });
  return { display, seen };
}

Deno.test("Display writes plain lines at the first step, every few seconds and at the last step", () => {
  const { display, seen } = watched({ isTerminal: false, everySeconds: 5 });
  for (let step = 1; step <= 10; step++, seen.now += 1000) display.update({ step, totalSteps: 10 });
  display.message("saved");
  display[Symbol.dispose]();
  assertEquals(seen.people, "step 1/10\nstep 6/10  4s left\nstep 10/10  0s left\nsaved\n");
});

Deno.test("Display redraws one line on a terminal and prints messages above it", () => {
  const { display, seen } = watched({ isTerminal: true });
  display.update({ step: 1, totalSteps: 10, secondsLeft: 9 });
  seen.now = 50; // too soon to redraw
  display.update({ step: 2, totalSteps: 10, secondsLeft: 8 });
  display.message("saved");
  display[Symbol.dispose]();
  const clear = "\r\x1b[2K";
  const lines = seen.people.split(clear);
  assertEquals(lines.slice(3).map((line) => line.endsWith("\n")), [false, true]);
  assertEquals(lines[2], "saved\n");
  assertMatch(lines[1], /^━+─+ {2}10% {2}step 1\/10 {2}9s left$/);
  assertStringIncludes(lines[3], "step 2/10  8s left");
  assert(lines.every((line) => line.trimEnd().length <= 60));
});

Deno.test("Display keeps programs' lines apart from people's", () => {
  const json = watched({ isTerminal: false, json: true });
  json.display.record({ step: 1, loss: 2 });
  json.display.message("hello");
  assertEquals(json.seen, { people: "hello\n", programs: '{"step":1,"loss":2}\n', now: 0 });
  const plain = watched({ isTerminal: false });
  plain.display.record({ step: 1 });
  assertEquals(plain.seen.programs, "");
});

// What may be run is either this very program or the one that the path finds.
const deno = () =>
  Deno.permissions.querySync({ name: "run", command: Deno.execPath() }).state === "granted" ? Deno.execPath() : "deno";

Deno.test("Display lets a run go on whose reader stands still, and loses none of its lines", async () => {
  const lines = 20_000; // many times what a pipe holds
  const code = `
    import { Display } from "${new URL("./display.ts", import.meta.url)}";
    const display = new Display({ json: true });
    for (let step = 1; step <= ${lines}; step++) {
      display.record({ step });
      if (step % 1000 === 0) await new Promise((resolve) => setTimeout(resolve, 0));
    }
    console.error("went on");
    await display.flushed();
    console.error("all is out");`;
  const child = new Deno.Command(deno(), {
    args: ["eval", "--no-check", "--ext=ts", code],
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const err = child.stderr.pipeThrough(new TextDecoderStream() as TransformStream<Uint8Array, string>).getReader();
  assertEquals((await err.read()).value, "went on\n"); // and nobody has read a line yet
  const out = await new Response(child.stdout).text();
  assertEquals(
    out.trimEnd().split("\n").map((line) => JSON.parse(line).step),
    Array.from({ length: lines }, (_, i) => i + 1),
  );
  assertEquals([(await err.read()).value, (await err.read()).done, (await child.status).code], [
    "all is out\n",
    true,
    0,
  ]);
});

Deno.test("Display writes to the process's own streams: JSON to one, text to the other, plain in a pipe", async () => {
  const code = `
    import { Display } from "${new URL("./display.ts", import.meta.url)}";
    using display = new Display({ json: true });
    display.update({ step: 1, totalSteps: 1, loss: 2 });
    display.record({ step: 1 });`;
  const command = new Deno.Command(deno(), {
    args: ["eval", "--no-check", "--ext=ts", code],
    stdout: "piped",
    stderr: "piped",
  });
  const result = await command.output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  assertEquals([result.code, text(result.stdout), text(result.stderr)], [
    0,
    '{"step":1}\n',
    "step 1/1  loss 2.0000\n",
  ]);
});
