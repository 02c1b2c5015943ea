import { assertEquals, assertMatch, assertThrows } from "@std/assert";
import { inScratch, onSmallDisk } from "./_testing.ts";
import { requireWritable } from "./writable.ts";

Deno.test("requireWritable() makes the folder, leaves nothing in it, and says why it cannot", () =>
  inScratch(async (folder) => {
    requireWritable("runtime.run_dir", `${folder}/new/run`);
    assertEquals([...Deno.readDirSync(`${folder}/new/run`)], []);
    await Deno.writeTextFile(`${folder}/file`, "");
    assertThrows(() => requireWritable("runtime.run_dir", `${folder}/file/run`), Error, "a part of the path is a file");
    assertThrows(
      () => requireWritable("runtime.run_dir", `${folder}/file`),
      Error,
      "it is a file, and a folder is needed",
    );
    assertThrows(
      () => requireWritable("runtime.run_dir", "/proc/run"),
      Error,
      "Cannot write to runtime.run_dir /proc/run",
    );
  }));

Deno.test("requireWritable() finds a disk full on which an empty file would fit", () =>
  onSmallDisk((disk) => {
    const filler = Deno.openSync(`${disk}/filler`, { write: true, create: true });
    assertThrows(() => {
      while (true) filler.writeSync(new Uint8Array(4096));
    });
    filler.close();
    const error = assertThrows(() => requireWritable("ckpt.save_ckpt_folder", disk), Error) as Error;
    assertMatch(error.message, /Cannot write to ckpt\.save_ckpt_folder .*: the disk is full: .* are needed/);
    assertEquals([...Deno.readDirSync(disk)].map(({ name }) => name), ["filler"]);
    return Promise.resolve();
  }));
