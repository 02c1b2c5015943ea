import { assertEquals } from "@std/assert";
import { recordedSpans, TraceWriter } from "./trace.ts";

interface Event {
  ph: string;
  pid: number;
  tid: number;
  name: string;
  ts?: number;
  dur?: number;
  args: Record<string, unknown>;
}

Deno.test("TraceWriter writes nested spans, lanes and counters that a viewer can read, whole or cut short", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const path = `${folder}/rank3.json`;
    let clock = 0;
    const trace = new TraceWriter(path, { rank: 3, now: () => clock++ });
    {
      using _step = trace.span("step", { args: { step: 7 } }); // begins at 0
      const forward = trace.span("forward"); // 1
      forward.end(); // 2
      forward.end(); // a second end changes nothing
    } // 3
    trace.flush();
    const unfinished: Event[] = JSON.parse(Deno.readTextFileSync(path) + "]");
    trace.complete("matmul", 1.5, 1.75, { lane: "gpu" });
    trace.counter("memory", { bytes: 9 });
    trace[Symbol.dispose]();
    const events: Event[] = JSON.parse(Deno.readTextFileSync(path));
    assertEquals(events.slice(0, unfinished.length), unfinished);
    assertEquals(events.every((event) => event.pid === 3), true);
    const spans = events.filter((event) => event.ph === "X").map(({ name, ts, dur, tid }) => [name, ts, dur, tid]);
    assertEquals(spans, [["forward", 1000, 1000, 1], ["step", 0, 3000, 1], ["matmul", 1500, 250, 2]]);
    const lanes = events.filter((event) => event.name === "thread_name").map(({ tid, args }) => [tid, args.name]);
    assertEquals(lanes, [[1, "host"], [2, "gpu"]]);
    assertEquals(events.at(-1), { pid: 3, ph: "C", name: "memory", tid: 0, ts: 4000, args: { bytes: 9 } });
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("recordedSpans() pairs what began with what is done, in order, and leaves out what is still going on", () => {
  const at = (ms: number, text: string) => ({ at: performance.timeOrigin + ms, text });
  const records = [
    at(1, "reduce: begun"),
    at(2, "reduce: begun"),
    at(3, "a note"),
    at(5, "reduce: done"),
    at(6, "gather: done"),
    at(9, "reduce: done"),
    at(10, "gather: begun"),
  ];
  assertEquals(
    recordedSpans(records).map(({ name, begin, end }) => [name, Math.round(begin), Math.round(end)]),
    [["reduce", 1, 5], ["reduce", 2, 9]],
  );
});
