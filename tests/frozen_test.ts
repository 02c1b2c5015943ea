/** A rank that neither works nor ends. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertNoStackTrace, curve, inFolder, rankOf, tinyRecord } from "./processes.ts";

Deno.test("a rank frozen by SIGSTOP is missed, killed and replaced, and the curve does not tell", () =>
  inFolder(async (parent, processes) => {
    const curves = [];
    for (const name of ["calm", "rough"]) {
      const folder = `${parent}/${name}`;
      Deno.mkdirSync(folder);
      const config = tinyRecord(folder, {
        model: { vocab_size: 4096 },
        data: { total_steps: 60 },
        runtime: { silence_timeout_s: 2.5 },
      });
      const run = processes.start(["train", "--config", config, "--backend", "cpu", "--json"], { folder });
      if (name === "rough") {
        const rank = await rankOf(folder);
        await run.out.until((text) => text.split("\n").length > 12, "some steps");
        await processes.signal("STOP", rank);
        await rankOf(folder, 2);
        assert(!await processes.alive(rank), "the frozen one is gone");
      }
      const ended = await run.ended;
      assertEquals(ended.code, 0, ended.err);
      assertNoStackTrace(ended);
      if (name === "rough") {
        assertMatch(
          ended.err,
          /^ALERT Rank 0 was not heard of for \d+ s, last at "\w+" after step \d+, and was killed; starting it again/m,
        );
      }
      curves.push(curve(folder));
    }
    assertEquals(curves[1], curves[0]);
  }));
