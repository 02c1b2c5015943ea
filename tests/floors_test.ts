/** The house's one rule: imports run downwards only (docs/architecture.md). */
import { assertEquals } from "@std/assert";
import { dirname, join, relative } from "node:path";

const root = new URL("../", import.meta.url).pathname;

/** Folders by floor; the longest prefix that fits decides. */
const floors: readonly (readonly [string, number])[] = [
  ["src/std/", 0],
  ["src/config/", 0],
  ["actors/runtime/", 0],
  ["kernels/", 1],
  ["src/comm/", 1],
  ["src/data/", 1],
  ["src/checkpoint/", 1],
  ["src/observe/", 1],
  ["src/backend/", 2],
  ["src/graph/", 3],
  ["src/nn/", 4],
  ["src/parallel/", 4],
  ["src/models/", 5],
  ["src/pipeline/", 6],
  ["src/optimizer/", 6],
  ["src/train/", 7],
  ["actors/", 8],
  ["src/cli/", 9],
  ["mod.ts", 9],
];

function floorOf(path: string): number {
  const fits = floors.filter(([prefix]) => path.startsWith(prefix)).sort(([a], [b]) => b.length - a.length)[0];
  if (!fits) throw new RangeError(`${path} stands on no floor: name its folder here and in docs/architecture.md`);
  return fits[1];
}

/** Tests and what only they use may look anywhere. */
const isTest = (path: string) => /(_test|_testing|\/testing)\.ts$/.test(path);

function* sources(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(join(root, folder))) {
    const path = `${folder}/${name}`;
    if (isDirectory) yield* sources(path);
    else if (name.endsWith(".ts") && !name.endsWith(".d.ts") && !isTest(path)) yield path;
  }
}

Deno.test("no file imports from a floor above its own", () => {
  const wrong: string[] = [];
  for (const path of ["mod.ts", ...sources("src"), ...sources("actors"), ...sources("kernels")]) {
    const text = Deno.readTextFileSync(join(root, path)).replaceAll(/\/\*[\s\S]*?\*\//g, "");
    for (const [, specifier] of text.matchAll(/(?:from|import\()\s*"(\.[^"]+\.ts)"/g)) {
      const target = relative(root, join(root, dirname(path), specifier!));
      if (floorOf(target) > floorOf(path)) wrong.push(`${path} (floor ${floorOf(path)}) imports ${target}`);
    }
  }
  assertEquals(wrong, []);
});
