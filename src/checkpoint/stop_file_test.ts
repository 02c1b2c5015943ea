import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "node:path";
import { withTempDir } from "./_testing.ts";
import { createStopFile, parseStopFile, readStopFile } from "./stop_file.ts";

Deno.test("readStopFile() reads what createStopFile() and people write", () =>
  withTempDir(async (folder) => {
    const path = join(folder, "stop");
    assertEquals(await readStopFile(path), 0);
    Deno.writeTextFileSync(path, "999");
    await createStopFile(path);
    assertEquals(await readStopFile(path), 0);
    Deno.writeTextFileSync(path, " -500\n");
    assertEquals(await readStopFile(path), -500);
    await assertRejects(() => createStopFile(join(folder, "none", "stop")), Error, "Cannot create stop file");
  }));

Deno.test("parseStopFile() takes integers and nothing else", () => {
  assertEquals(["", "\n", "0", "+7", "12\r\n"].map((text) => parseStopFile(text, "f")), [0, 0, 0, 7, 12]);
  for (const text of ["now", "1.5", "1e3", "0x10", "- 5", "-", "9".repeat(30), "NaN"]) {
    assertThrows(() => parseStopFile(text, "f"), SyntaxError, "it must hold one integer", text);
  }
});
