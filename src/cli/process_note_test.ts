import { assertEquals } from "@std/assert";
import { keepProcessNote, type NotedRank } from "./process_note.ts";

Deno.test("keepProcessNote() writes what changes in one moment once, and nobody at the end", async () => {
  const path = await Deno.makeTempDir();
  try {
    const read = () => JSON.parse(Deno.readTextFileSync(`${path}/ranks.json`));
    const ranks: NotedRank[] = [];
    let asked = 0;
    const note = keepProcessNote({ path }, () => {
      asked++;
      return ranks;
    }, 0);
    for (let rank = 0; rank < 1024; rank++) {
      ranks.push({ rank, pid: rank + 1, attempt: 1 });
      note.changed();
    }
    await new Promise((resolve) => setTimeout(resolve));
    assertEquals(asked, 1);
    assertEquals([read().root, read().ranks.length], [Deno.pid, 1024]);
    note.changed();
    note[Symbol.dispose]();
    assertEquals([asked, read().ranks], [1, []]);
  } finally {
    await Deno.remove(path, { recursive: true });
  }
});
