import { assertEquals, assertMatch } from "@std/assert";
import { createLogger, fileSink } from "./logger.ts";

const now = () => new Date(2024, 0, 31, 9, 5, 7, 42);

Deno.test("createLogger() writes time, level, place and message, and drops what is below its level", () => {
  const lines: string[] = [];
  const logger = createLogger({ sinks: [(line) => lines.push(line)], level: "warning", now });
  function someFunction() {
    logger.info("not wanted");
    logger.warning("look here");
  }
  someFunction();
  assertEquals(lines.length, 1);
  assertMatch(lines[0], /^2024-01-31 09:05:07,042\tWARNING logger_test\.ts:\d+ in someFunction -- look here$/);
});

Deno.test("fileSink() appends lines to a file", () => {
  const folder = Deno.makeTempDirSync();
  try {
    for (const message of ["one", "two"]) {
      using sink = fileSink(`${folder}/log`);
      createLogger({ sinks: [sink], now }).error(message);
    }
    const lines = Deno.readTextFileSync(`${folder}/log`).trimEnd().split("\n");
    assertEquals(lines.map((line) => line.split(" -- ")[1]), ["one", "two"]);
  } finally {
    Deno.removeSync(folder, { recursive: true });
  }
});
