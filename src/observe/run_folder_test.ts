import { assertEquals, assertThrows } from "@std/assert";
import { copyFolder, makeNewRunFolder, makeRunFolder, rankFileName, runFolder } from "./run_folder.ts";

const startTime = new Date(2024, 10, 3, 4, 5, 6);

Deno.test("runFolder() names the folder by job and start time", () => {
  assertEquals(runFolder({ jobName: "7b", startTime, root: "/r" }).logs, "/r/7b/11-03-04.05.06/logs");
  assertEquals(rankFileName({ dp: 1, tp: 2, pp: 3, main: false }), "dp=1_tp=2_pp=3");
  assertEquals(rankFileName({ dp: 0, tp: 0, pp: 0, main: true }), "main_dp=0_tp=0_pp=0");
});

Deno.test("runFolder() refuses names that lead elsewhere", () => {
  for (const jobName of ["", "..", "a/b", "a\\b", "a\nb"]) {
    assertThrows(() => runFolder({ jobName, startTime }), RangeError, "JOB_NAME");
  }
});

Deno.test("makeNewRunFolder() gives runs that begin in the same second a folder each", () => {
  const root = Deno.makeTempDirSync();
  try {
    const paths = Array.from({ length: 3 }, () => makeNewRunFolder({ jobName: "a", startTime, root }).path);
    assertEquals(paths, ["", "-2", "-3"].map((end) => `${root}/a/11-03-04.05.06${end}`));
    for (const path of paths) assertEquals([...Deno.readDirSync(path)].length, 3);
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
});

Deno.test("copyFolder() copies what makeRunFolder() made, and refuses the root", () => {
  const root = Deno.makeTempDirSync();
  try {
    const folder = runFolder({ jobName: "a", startTime, root });
    makeRunFolder(folder);
    Deno.mkdirSync(`${folder.tensorboards}/dp=0`);
    Deno.writeTextFileSync(`${folder.tensorboards}/dp=0/events`, "x");
    copyFolder(folder.tensorboards, `${root}/new/tensorboards`);
    assertEquals(Deno.readTextFileSync(`${root}/new/tensorboards/dp=0/events`), "x");
    assertThrows(() => copyFolder("/", `${root}/new`), RangeError, "root");
    assertThrows(() => copyFolder(`${root}/absent`, `${root}/new`), Deno.errors.NotFound);
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
});
