import { assertEquals, assertThrows } from "@std/assert";
import { join } from "node:path";
import { datasetTypes, minLengthFor, validationSetNames, walkTokenFolders } from "./folder.ts";

Deno.test("walkTokenFolders() sorts names and takes .bin files only", () => {
  const root = Deno.makeTempDirSync();
  try {
    for (const folder of ["b/deep", "a", "c"]) Deno.mkdirSync(join(root, folder), { recursive: true });
    for (const file of ["b/2.bin", "b/10.bin", "b/2.bin.meta", "b/deep/x.bin", "a/y.txt", "z.bin"]) {
      Deno.writeTextFileSync(join(root, file), "");
    }
    const folders = walkTokenFolders(root);
    assertEquals(folders.map(({ path, files }) => [path.slice(root.length), ...files]), [
      ["", "z.bin"],
      ["/b", "10.bin", "2.bin"],
      ["/b/deep", "x.bin"],
    ]);
    assertEquals([...datasetTypes(root)], [["a", 0], ["b", 1], ["c", 2]]);
    assertThrows(
      () => walkTokenFolders(join(root, "none"), "data.train_folder"),
      Deno.errors.NotFound,
      "data.train_folder",
    );
  } finally {
    Deno.removeSync(root, { recursive: true });
  }
});

Deno.test("minLengthFor() takes the one key that is part of the path", () => {
  assertEquals(minLengthFor("/d/en/a.bin", 5, { "/en/": 2, cn: 9 }), 2);
  assertEquals(minLengthFor("/d/fr/a.bin", 5, { "/en/": 2 }), 5);
  assertThrows(() => minLengthFor("/d/en/cn.bin", 5, { "/en/": 2, cn: 9 }), RangeError, "more than one key");
});

Deno.test("validationSetNames() keeps sets of the same name apart", () => {
  const folders = ["/v/en", "/v/code", "/v/more/en"].map((path) => ({ path, files: ["a.bin"] }));
  assertEquals(validationSetNames("/v", folders), ["en", "code", "more/en"]);
});
