import { assert, assertEquals } from "@std/assert";
import { inFolder } from "./processes.ts";

Deno.test("bench data measures tokenizing, opening a set and the loader's worker, and leaves nothing behind", () =>
  inFolder(async (folder, processes) => {
    const { code, out, err } = await processes.run(["bench", "data", "--documents", "400"], { folder });
    assertEquals(code, 0, err);
    const lines = out.trim().split("\n").map((line) => JSON.parse(line) as Record<string, unknown>);
    assertEquals(lines.map(({ bench, figure, unit }) => [bench, figure, unit]), [
      ["data", "tokenize", "MB/s"],
      ["data", "open", "s"],
      ["data", "loader", "tokens/s"],
    ]);
    assert(lines.every(({ value }) => value as number > 0));
    assertEquals(lines[1]!.documents, 400);
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), []);
  }));
