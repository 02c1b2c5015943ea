import { assert, assertEquals } from "@std/assert";
import { inScratch, troupe } from "./_testing.ts";

Deno.test("train says what several hosts need, before it writes anything", () =>
  inScratch(async (folder) => {
    const cases: [string[], string][] = [
      [["--launcher", "torch"], "torchrun-style variables: RANK is not set"],
      [["--join"], "--host with the root's address is missing"],
      [["--host", "127.0.0.1", "--world_size", "2"], "TROUPE_TOKEN is not set"],
      [["--join", "--host", "127.0.0.1"], "TROUPE_TOKEN is not set"],
    ];
    for (const [args, words] of cases) {
      const folders = [
        "--set",
        `runtime.run_dir=${folder}/RUN/x`,
        "--set",
        `ckpt.save_ckpt_folder=local:${folder}/ckpt`,
      ];
      const { code, err } = await troupe("train", ...args, ...folders);
      assertEquals(code, 2, err);
      assert(err.includes(words), err);
    }
    assertEquals([...Deno.readDirSync(folder)], []);
  }));
