/** A process that neither works nor ends. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertNoStackTrace, curve, type CurvePoint, inFolder, rankOf, ranks, tinyRecord, until } from "./processes.ts";
import { undisturbed } from "./undisturbed.ts";

Deno.test("a rank frozen by SIGSTOP is missed, killed and replaced; ranks leave a root that is; and the curve does not tell", () =>
  inFolder(async (parent, processes) => {
    let calm: readonly CurvePoint[] | undefined;
    for (const name of ["rough", "rootless"]) {
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
      if (name === "rootless") {
        const rank = await rankOf(folder), { root } = ranks(folder)!;
        await run.out.until((text) => text.split("\n").length > 12, "some steps");
        await processes.signal("STOP", root);
        await until(async () => !await processes.alive(rank), "the end of its rank");
        assert(await processes.frozen(root));
        await processes.signal("CONT", root);
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
      if (name === "rootless") {
        assertMatch(ended.err, /^rank: the root has not answered for 3 s; leaving$/m);
        assertMatch(
          ended.err,
          /^ALERT Rank 0 left with \d+ steps? done, as this process did not answer it; starting it again/m,
        );
      }
      assertEquals(curve(folder), calm ??= (await undisturbed(config, 1)).curve, name);
    }
  }));
