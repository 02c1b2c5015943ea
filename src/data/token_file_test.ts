import { assert, assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import { RandomState } from "./mt19937.ts";
import { npyHeader, type NpyType } from "./npy.ts";
import { closeTokenFiles, openTokenFile } from "./token_file.ts";
import { createTokenFile } from "./token_file_writer.ts";

const samples = [[5, 6, 7], [8, -9], [10, 11, 12, 13], [], [2147483647]];

/** A folder that vanishes. */
function scratch(): { path: string } & Disposable {
  const path = Deno.makeTempDirSync();
  return {
    path,
    [Symbol.dispose]() {
      closeTokenFiles();
      Deno.removeSync(path, { recursive: true });
    },
  };
}

function written(path: string): string {
  using writer = createTokenFile(path);
  for (const sample of samples) writer.write(sample);
  writer.finish();
  return path;
}

/** An NPY file of integers in rows of two. */
function formatNpy(type: NpyType, values: readonly number[]): Uint8Array<ArrayBuffer> {
  const data = type === "<i4" ? Int32Array.from(values) : BigInt64Array.from(values, BigInt);
  return Uint8Array.from([...npyHeader(type, values.length / 2, 2), ...new Uint8Array(data.buffer)]);
}

Deno.test("openTokenFile() reads what createTokenFile() wrote, in any order", () => {
  using folder = scratch();
  const source = openTokenFile(written(`${folder.path}/x/a.bin`));
  assertEquals([...source.lengths], samples.map((sample) => sample.length));
  for (const i of [4, 0, 3, 2, 1, 2]) assertEquals([...source.read(i)], samples[i]);
  assertEquals([...Deno.readDirSync(`${folder.path}/x`)].map(({ name }) => name).sort(), ["a.bin", "a.bin.meta"]);
});

Deno.test("openTokenFile() reads lines with other fields, spaces and no last newline", () => {
  using folder = scratch();
  const path = `${folder.path}/a.bin`;
  const lines = ['{"id": "é", "tokens": [ 1 , 2 ]}\n', ' {"tokens": [3], "more": {}}\r\n', '{"tokens":[4,5,6]}'];
  const encoder = new TextEncoder();
  let offset = 0;
  const table = lines.flatMap((line, i) => {
    const row = [offset, [2, 1, 3][i]];
    offset += encoder.encode(line).length;
    return row;
  });
  Deno.writeTextFileSync(path, lines.join(""));
  for (const type of ["<i4", "<i8"] as const) {
    Deno.writeFileSync(path + ".meta", formatNpy(type, table));
    const source = openTokenFile(path);
    assertEquals([0, 1, 2].map((i) => [...source.read(i)]), [[1, 2], [3], [4, 5, 6]]);
  }
});

Deno.test("createTokenFile() leaves existing output alone, and nothing behind when it is given up", () => {
  using folder = scratch();
  const path = written(`${folder.path}/a.bin`);
  const before = Deno.readTextFileSync(path);
  assertThrows(() => createTokenFile(path), Deno.errors.AlreadyExists, "--overwrite");
  {
    using writer = createTokenFile(path, { overwrite: true });
    writer.write([1]);
  }
  assertEquals(Deno.readTextFileSync(path), before);
  assertEquals([...Deno.readDirSync(folder.path)].length, 2);
});

Deno.test("openTokenFile() names both files when one is missing", () => {
  using folder = scratch();
  for (const missing of ["", ".meta"]) {
    const path = written(`${folder.path}/missing${missing}.bin`);
    Deno.removeSync(path + missing);
    const { message } = assertThrows(() => openTokenFile(path), Deno.errors.NotFound);
    assertStringIncludes(message.replaceAll(path + ".meta", ""), path);
    assertStringIncludes(message, path + ".meta");
  }
});

Deno.test("openTokenFile() says what is damaged, and where", () => {
  using folder = scratch();
  const path = written(`${folder.path}/a.bin`);
  const bin = Deno.readFileSync(path);
  const meta = Deno.readFileSync(path + ".meta");
  const put = (text: Uint8Array | string, table: Uint8Array = meta) => {
    if (typeof text === "string") Deno.writeTextFileSync(path, text);
    else Deno.writeFileSync(path, text);
    Deno.writeFileSync(path + ".meta", table);
  };
  const source = openTokenFile(path), third = source.place(2).start;
  const text = new TextDecoder().decode(bin);

  put(bin.subarray(0, third));
  assertThrows(() => openTokenFile(path), SyntaxError, `${path} is cut off`);

  put(bin.subarray(0, bin.length - 5));
  assertThrows(() => openTokenFile(path).read(4), SyntaxError, "cut off");

  put(text.replace("8,-9", "8,--"));
  const at = text.indexOf("8,-9") + 3;
  assertThrows(() => openTokenFile(path).read(1), SyntaxError, `${path}: bad JSON at byte ${at}`);

  put(text.replace("5,6,7", "5, 67"));
  assertThrows(() => openTokenFile(path).read(0), SyntaxError, "has 2 tokens, and");

  put(text.replace("5,6,7", '5,"6"').replace("[10", "[1."));
  assertThrows(() => openTokenFile(path).read(0), SyntaxError, 'no array of integers named "tokens"');

  put(bin, meta.subarray(0, meta.length - 8));
  assertThrows(() => openTokenFile(path), SyntaxError, "bytes of data");

  const header = new TextDecoder("latin1").decode(meta.subarray(0, 128));
  for (
    const [from, to, problem] of [
      ["NUMPY", "NUMPI", "does not begin"],
      ["descr", "deskr", "lacks descr"],
      ["<i8", "<f8", "its type is <f8"],
      ["False", "True ", "Fortran order"],
    ]
  ) {
    const changed = meta.slice();
    changed.set(new TextEncoder().encode(to), header.indexOf(from));
    put(bin, changed);
    assertThrows(() => openTokenFile(path), SyntaxError, problem);
  }

  const table = samples.flatMap(({ length }, i) => [source.place(i).start, length]);
  put(bin, formatNpy("<i8", table.toSpliced(2, 1, table[4])));
  assertThrows(() => openTokenFile(path), SyntaxError, "does not follow");
  put(bin, formatNpy("<i8", table.toSpliced(1, 1, 1e9)));
  assertThrows(() => openTokenFile(path), SyntaxError, "cannot hold 1000000000 tokens");
});

Deno.test("openTokenFile() answers any damage with an error or with samples, never otherwise", () => {
  using folder = scratch();
  const path = written(`${folder.path}/a.bin`);
  const original = { bin: Deno.readFileSync(path), meta: Deno.readFileSync(path + ".meta") };
  const random = new RandomState(7);
  let refused = 0;
  const rounds = Number(Deno.env.get("TROUPE_FUZZ") ?? 50); // 500 is the long form
  for (let round = 0; round < rounds; round++) {
    for (const part of ["bin", "meta"] as const) {
      let bytes = original[part].slice();
      if (part === (round % 2 ? "bin" : "meta")) {
        for (let i = 0; i < 1 + random.randomInterval(4); i++) {
          bytes[random.randomInterval(bytes.length - 1)] = random.randomInterval(255);
        }
        if (round % 5 === 0) bytes = bytes.slice(0, random.randomInterval(bytes.length));
      }
      Deno.writeFileSync(part === "bin" ? path : path + ".meta", bytes);
    }
    try {
      const source = openTokenFile(path);
      for (let i = 0; i < source.lengths.length; i++) assertEquals(source.read(i).length, source.lengths[i]);
    } catch (error) {
      refused++;
      assert(error instanceof SyntaxError, `round ${round}: ${error}`);
      assertStringIncludes(error.message, path);
    }
  }
  assert(refused > rounds / 2, `only ${refused} of ${rounds} were noticed`);
});
