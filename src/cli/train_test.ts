import { assert, assertEquals } from "@std/assert";
import { troupe } from "./_testing.ts";

Deno.test("train refuses to be one of several ranks that a launcher starts", async () => {
  Deno.env.set("WORLD_SIZE", "4");
  try {
    const { code, err } = await troupe("train", "--launcher", "torch");
    assertEquals(code, 2);
    assert(err.includes("WORLD_SIZE is 4; Troupe trains on one rank"), err);
  } finally {
    Deno.env.delete("WORLD_SIZE");
  }
  const { code, err } = await troupe("train", "--local_rank", "1");
  assertEquals(code, 2);
  assert(err.includes("--local_rank"), err);
});
