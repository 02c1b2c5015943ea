import { assertEquals } from "@std/assert";
import { createTrainLoader, type DataPosition } from "../src/data/mod.ts";
import { dataLoader } from "./data_loader.ts";
import { createRuntime } from "./runtime/mod.ts";

Deno.test("dataLoader() counts a beginning over the ranks there are, and what was begun over those it began with", async () => {
  const data = { seq_len: 8, micro_bsz: 1, micro_num: 2 };
  // A checkpoint that `troupe convert` makes is of one rank.
  const one = createTrainLoader(data, { dataRank: 0, dataWorldSize: 1 }), positions: DataPosition[] = [one.state()];
  positions.push((await one.next()).after);
  one.close();
  const runtime = createRuntime();
  try {
    for (const [index, position] of positions.entries()) {
      const loader = runtime.spawn(`loader ${index}`, dataLoader({ data, position, dataRank: 0, dataWorldSize: 2 }));
      const { begin } = await loader.ask({ kind: "describe" });
      assertEquals([begin.batch_count, begin.data_world_size], [index, index === 0 ? 2 : 1]);
    }
  } finally {
    await runtime.stop();
  }
});
