import { assert, assertEquals, assertThrows } from "@std/assert";
import { openAt, sameHost, socketFolder } from "./local_sockets.ts";

Deno.test({
  name: "openAt() takes the place of a killed rank's socket, and nothing in a folder that others may enter",
  ignore: Deno.build.os === "windows",
  async fn() {
    const folder = socketFolder()!, path = `${folder}/0`, opened: string[] = [];
    const open = (path: string) => {
      opened.push(path);
      return { close: () => Promise.resolve() };
    };
    Deno.mkdirSync(folder, { mode: 0o700 });
    Deno.writeTextFileSync(path, "left behind");
    const gate = openAt(path, open)!;
    assertThrows(() => Deno.lstatSync(path), Deno.errors.NotFound);
    Deno.chmodSync(folder, 0o755);
    assertEquals(openAt(path, open), undefined);
    assertEquals(opened, [path]);
    await gate.close();
    assertThrows(() => Deno.lstatSync(folder), Deno.errors.NotFound);
  },
});

Deno.test("sameHost() goes by the folder", () => {
  assert(sameHost("/a/0", "/a/1"));
  assert(!sameHost("/a/0", "/b/0"));
  assert(!sameHost(undefined, undefined));
});
