import { assert, assertEquals } from "@std/assert";
import { troupe } from "./_testing.ts";

Deno.test("train says what several hosts need", async () => {
  const cases: [string[], string][] = [
    [["--launcher", "torch"], "torchrun-style variables: RANK is not set"],
    [["--join"], "--host with the root's address is missing"],
    [["--host", "127.0.0.1", "--world_size", "2"], "TROUPE_TOKEN is not set"],
    [["--join", "--host", "127.0.0.1"], "TROUPE_TOKEN is not set"],
  ];
  for (const [args, words] of cases) {
    const { code, err } = await troupe("train", ...args);
    assertEquals(code, 2, err);
    assert(err.includes(words), err);
  }
});
