import { assertEquals } from "@std/assert";
import { fileURLToPath } from "node:url";
import { derivedValues } from "../src/config/derived.ts";
import { fieldsOf } from "../src/config/record.ts";

const project = fileURLToPath(new URL("../", import.meta.url));

function* sources(folder: string): Generator<string> {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    const path = `${folder}/${name}`;
    // The schema declares fields, it does not read them.
    if (isDirectory && name !== "schema") yield* sources(path);
    else if (/\.ts$/.test(name) && !/_test\.ts$|_testing\.ts$/.test(name)) yield path;
  }
}

Deno.test("every field of the record that works is read by the program, or a notice says that it changes nothing", () => {
  const read = new Set<string>();
  for (const folder of ["src", "actors"]) {
    for (const path of sources(project + folder)) {
      const code = Deno.readTextFileSync(path)
        .replaceAll(/\/\*[^]*?\*\/|\/\/.*$/gm, "")
        .replaceAll(/"[^"\n]*"/g, "");
      for (const [word] of code.matchAll(/[A-Za-z_]\w*/g)) read.add(word);
    }
  }
  const idle = [...fieldsOf()].filter(({ path, note: { status, notice } }) =>
    status === "works" && notice === undefined && derivedValues[path]?.overrules === undefined &&
    !read.has(path.split(".").at(-1)!)
  );
  assertEquals(idle.map(({ path }) => path), []);
});
