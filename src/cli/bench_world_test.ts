import { assert, assertEquals } from "@std/assert";
import type { BenchLine } from "./bench_line.ts";
import { benchWorld } from "./bench_world.ts";
import { inScratch } from "./_testing.ts";

Deno.test("benchWorld() joins hosts, hears their beats, loses one and goes on", () =>
  inScratch(async (folder) => {
    const lines: BenchLine[] = [];
    await benchWorld({ hosts: 5, seconds: 1.2, folder, report: (line) => lines.push(line) });
    assertEquals(lines.map(({ figure, unit }) => [figure, unit]), [
      ["joining", "s"],
      ["starting", "s"],
      ["heartbeat_round", "ms"],
      ["memory", "MiB"],
      ["messages", "messages/s"],
      ["failure_noticed", "s"],
      ["failure_told", "s"],
      ["failure_recovered", "s"],
    ]);
    for (const line of lines) assert((line.value as number) > 0 && line.hosts === 5, JSON.stringify(line));
    const value = (figure: string) => lines.find((line) => line.figure === figure)!.value as number;
    assert(value("failure_told") <= value("failure_recovered"));
    assertEquals([...Deno.readDirSync(folder)], []);
  }));
