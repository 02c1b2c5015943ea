/** Two hosts that are network namespaces, where those can be made: a cable that is pulled, and a slow one. */
import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertNoStackTrace, curve, inFolder, tinyRecord } from "./processes.ts";
import { skip } from "./skip.ts";
import { missing, namespaces, noNamespaces } from "./two_hosts.ts";
import { undisturbed } from "./undisturbed.ts";

const train = (path: string, ...more: string[]) => ["train", "--config", path, "--backend", "cpu", "--json", ...more];

const cut = "a host whose cable is pulled is missed within seconds, leaves by itself, and is replaced";
const noCut = noNamespaces();
if (noCut) skip(cut, noCut);
else {
  Deno.test(cut, () =>
    inFolder(async (folder, processes) => {
      const path = tinyRecord(folder, {
        data: { total_steps: 40 },
        ckpt: { checkpoint_every: 4 },
        runtime: { max_restarts: 20 },
      });
      const { curve: calm } = await undisturbed(path, 2), options = { folder };
      await using hosts = namespaces(processes);
      const root = hosts.root(train(path, "--world_size", "2"), options), lost = hosts.member(train(path), options);
      const lines = () => root.out.text.split("\n").length - 1;
      await root.out.until(() => lines() >= 6, "some steps");
      hosts.cut();
      const left = await lost.ended;
      assertEquals(left.code, 1, left.err);
      assertMatch(left.err, /The root at .* was not heard of for 6 s/);
      await root.err.until(
        (text) => text.split("Waiting for 1 of 2 ranks").length > 2,
        "the search for another host",
      );
      hosts.mend();
      const replacement = hosts.member(train(path), options);
      const [ended, its] = await Promise.all([root.ended, replacement.ended]);
      assertEquals([ended.code, its.code], [0, 0], ended.err + its.err);
      assertMatch(ended.err, /ALERT Host .* was not heard of for 6 s/);
      assertEquals(curve(folder), calm);
    }));
}

const slow =
  "a cable so slow that one sum takes longer than a silent rank is waited for slows the run, and ends nothing";
const noSlow = missing(["tc"]) ?? noNamespaces();
if (noSlow) skip(slow, noSlow);
else {
  Deno.test(slow, () =>
    inFolder(async (folder, processes) => {
      // 0.8 MB of gradients a step go each way as one bucket of 0.4 MB, and parameters after them: 3 s each at 1 Mbit/s.
      const path = tinyRecord(folder, {
        model: { hidden_size: 64, vocab_size: 1536 },
        data: { total_steps: 2 },
        ckpt: { enable_save_ckpt: false },
        runtime: { max_restarts: 0 },
      });
      const { curve: calm } = await undisturbed(path, 2), options = { folder };
      await using hosts = namespaces(processes, { rate: "1mbit" });
      const root = hosts.root(train(path, "--world_size", "2"), options), member = hosts.member(train(path), options);
      const [ended, its] = await Promise.all([root.ended, member.ended]);
      assertEquals([ended.code, its.code], [0, 0], ended.err + its.err);
      assertNoStackTrace(ended);
      assertEquals(curve(folder), calm);
      const { tokensPerSecond } = JSON.parse(ended.out.trim().split("\n").at(-1)!);
      assert(64 * 2 / tokensPerSecond > 5, `the cable was slow: ${tokensPerSecond} tokens/s`);
    }));
}
