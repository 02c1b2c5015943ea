import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { BlackBox, formatStory } from "./black_box.ts";
import { FlightRecorder } from "./flight_recorder.ts";

Deno.test("FlightRecorder keeps the last records, for other threads too, and cuts long ones", () => {
  const recorder = new FlightRecorder(), reader = new FlightRecorder(recorder.memory);
  for (let i = 0; i < 1000; i++) recorder.note(`record ${i}`);
  recorder.note("x".repeat(500));
  const { records, next } = reader.since(0);
  assertEquals([records.length, next, records[0]!.text], [512, 1001, "record 489"]);
  assertEquals(records.at(-1)!.text, "x".repeat(119));
  assertEquals(reader.since(next).records, []);
  assertEquals(reader.since(990, 3).records.map(({ text }) => text.slice(0, 10)), [
    "record 998",
    "record 999",
    "xxxxxxxxxx",
  ]);
});

Deno.test("formatStory() says who waited for whom, and tells all ranks' records in the order of time", () => {
  const box = new BlackBox();
  box.add(0, 1, [{ at: 1, text: "of an earlier start" }]);
  box.add(0, 2, [{ at: 10, text: "forward 0" }, { at: 30, text: "all-reduce #4 of data: begun" }]);
  box.add(1, 2, [{ at: 20, text: "backward 0 of micro-batch 1" }]);
  const story = formatStory(box.content("Rank 1 froze"));
  assertStringIncludes(story, "Rank 0 waited in all-reduce #4 of data since 00:00:00.030");
  assertStringIncludes(story, "So rank 1 was waited for.");
  assertMatch(story, /rank 0 {2}forward 0\n.*rank 1 {2}backward 0 of micro-batch 1\n.*rank 0 {2}all-reduce #4/);
  assertEquals(story.includes("earlier"), false);
  const live = { ...box.content("troupe blackbox asked"), at: 40 };
  assertEquals(formatStory(live).includes("was waited for"), false, "a run that goes on waits for nobody");
});
