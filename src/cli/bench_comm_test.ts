import { assert, assertEquals } from "@std/assert";
import { benchComm } from "./bench_comm.ts";
import type { BenchLine } from "./bench_line.ts";

Deno.test("benchComm() measures all-reduce beside a bare ring, between processes", async () => {
  const lines: BenchLine[] = [], largest = 1 << 16;
  await benchComm({ ranks: [2, 3], largest, repeats: 1, report: (line) => lines.push(line) });
  assertEquals(
    lines.map(({ figure, ranks, bytes }) => [figure, ranks, bytes]),
    [2, 3].flatMap((ranks) => [
      ["small_all_reduce", ranks, 64],
      ...[1024, 4096, 16384, 65536].map((bytes) => ["all_reduce", ranks, bytes]),
    ]),
  );
  for (const line of lines) assert((line.value as number) > 0 && (line.ratio as number) > 0, JSON.stringify(line));
});
