import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { createHash } from "node:crypto";
import { join } from "node:path";
import { decode, encode } from "../../kernels/host.ts";
import { randomIntegers, withTempDir } from "./_testing.ts";
import { dtypeBytes, float32From, TensorFile, type TensorSource, writeSafetensors } from "./safetensors.ts";

/** A file made by hand, apart from the writer. */
function makeFile(header: unknown, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const file = new Uint8Array(8 + json.length + data.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  file.set(data, 8 + json.length);
  return file;
}

const bytes = (view: ArrayBufferView) => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);

Deno.test("TensorFile reads a hand-made file of every type into the caller's arrays", () =>
  withTempDir((directory) => {
    const dtypes = Object.keys(dtypeBytes) as (keyof typeof dtypeBytes)[];
    const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
    let end = 0;
    for (const dtype of dtypes) {
      const begin = end;
      end += 6 * dtypeBytes[dtype];
      header[`a ${dtype}`] = { dtype, shape: [2, 3], data_offsets: [begin, end] };
    }
    header.scalar = { dtype: "F32", shape: [], data_offsets: [end, end + 4] };
    header.empty = { dtype: "F32", shape: [0, 9], data_offsets: [end, end] };
    const data = Uint8Array.from({ length: end + 4 }, (_, i) => i % 251);
    const path = join(directory, "x.safetensors");
    Deno.writeFileSync(path, makeFile(header, data));
    using file = TensorFile.open(path);
    assertEquals(file.metadata, { format: "pt" });
    assertEquals(file.tensors.size, dtypes.length + 2);
    let begin = 0;
    for (const dtype of dtypes) {
      const size = 6 * dtypeBytes[dtype];
      const into = new Uint8Array(size);
      file.readBytes(`a ${dtype}`, into);
      assertEquals(into, data.slice(begin, begin + size));
      const part = new Uint8Array(2 * dtypeBytes[dtype]);
      file.readBytes(`a ${dtype}`, part, 3);
      assertEquals(part, data.slice(begin + size / 2, begin + size / 2 + part.length));
      begin += size;
    }
    assertEquals(bytes(file.readFloat32("scalar")), data.slice(end));
    assertEquals(file.readFloat32("empty").length, 0);
    assertThrows(() => file.readFloat32("a I64"), TypeError, "F32, F16 and BF16");
    assertThrows(() => file.readBytes("scalar", new Uint8Array(5)), RangeError, "bytes 0 to 5 were asked of 4");
    assertThrows(() => file.info("nothing"), RangeError, 'no tensor "nothing"; it has 17');
    file.expectTensor("a F32", [2, 3]);
    assertThrows(() => file.expectTensor("a F32", [3, 2]), RangeError, "[2,3] where the model needs [3,2]");
    assertThrows(() => file.expectTensor("nothing", [3, 2]), RangeError, 'no tensor "nothing", of shape [3,2]');
  }));

Deno.test("writeSafetensors() writes what TensorFile reads back, streamed or not, with the file's hash", () =>
  withTempDir(async (directory) => {
    const path = join(directory, "x.safetensors");
    const shared = new Float32Array(new SharedArrayBuffer(20)).map((_, i) => i - 2.5);
    async function* pieces() {
      yield new Float32Array([1, 2]);
      await Promise.resolve();
      yield new Float32Array([3]);
    }
    const tensors: TensorSource[] = [
      { name: "bytes", dtype: "U8", shape: [3], data: new Uint8Array([7, 8, 9]) },
      { name: "ids", dtype: "I64", shape: [2], data: new BigInt64Array([-1n, 1n << 60n]) },
      { name: "streamed", dtype: "F32", shape: [3, 1], data: pieces },
      { name: "shared", dtype: "F32", shape: [5], data: shared },
      { name: "__proto__", dtype: "BF16", shape: [1], data: encode("bf16", [1.5]) },
      { name: "größe", dtype: "F16", shape: [], data: new Float16Array([0.1]) },
      { name: "none", dtype: "F32", shape: [0], data: () => [] },
    ];
    const written = await writeSafetensors(path, tensors, { metadata: { note: "ä" } });
    const raw = Deno.readFileSync(path);
    assertEquals(written, { bytes: raw.length, sha256: createHash("sha256").update(raw).digest("hex") });
    using file = TensorFile.open(path);
    assertEquals(file.metadata, { note: "ä" });
    assertEquals([...file.tensors.keys()].sort(), tensors.map(({ name }) => name).sort());
    assertEquals([...file.readFloat32("streamed")], [1, 2, 3]);
    assertEquals([...file.readFloat32("shared")], [...shared]);
    assertEquals([...file.readFloat32("__proto__")], [1.5]);
    assertEquals([...file.readFloat32("größe")], [Math.f16round(0.1)]);
    const ids = new BigInt64Array(2);
    file.readBytes("ids", ids);
    assertEquals(ids, new BigInt64Array([-1n, 1n << 60n]));
    for (const { begin, dtype } of file.tensors.values()) assertEquals(begin % dtypeBytes[dtype], 0, "aligned");
  }));

Deno.test("writeSafetensors() refuses what does not fit its description, and leaves no file", () =>
  withTempDir(async (directory) => {
    const path = join(directory, "x.safetensors");
    const one = { name: "w", dtype: "F32", shape: [2] } as const;
    const short = [{ ...one, data: new Float32Array(1) }];
    await assertRejects(() => writeSafetensors(path, short), RangeError, "F32 [2], needs 8 bytes and was given 4");
    const long = [{ ...one, data: () => [new Float32Array(2), new Float32Array(2)] }];
    await assertRejects(() => writeSafetensors(path, long), RangeError, "needs 8 bytes and was given more");
    const good = { ...one, data: new Float32Array(2) };
    await assertRejects(() => writeSafetensors(path, [good, good]), RangeError, '"w" comes twice');
    await assertRejects(() => writeSafetensors(path, [{ ...good, name: "__metadata__" }]), RangeError, "reserved");
    assertEquals([...Deno.readDirSync(directory)], []);
    await writeSafetensors(path, [good]);
    await assertRejects(() => writeSafetensors(path, [good]), Error, "a file of this name is there already");
    assertEquals([...Deno.readDirSync(directory)].length, 1);
    const nowhere = join(directory, "none", "x.safetensors");
    await assertRejects(() => writeSafetensors(nowhere, [good]), Error, "no such file or folder");
  }));

Deno.test("TensorFile.open() says what is wrong with a malformed file", () =>
  withTempDir((directory) => {
    const path = join(directory, "x.safetensors");
    const tensor = { dtype: "F32", shape: [2], data_offsets: [0, 8] };
    const cases: [string, Uint8Array, string][] = [
      ["empty", new Uint8Array(0), "0 bytes, fewer than the 8"],
      ["huge header", new Uint8Array(16).fill(255), "its header claims"],
      [
        "header past the end",
        makeFile({}, new Uint8Array(0)).subarray(0, 9),
        "its header claims 2 bytes of a file of 9",
      ],
      ["no JSON", makeFile("{]", new Uint8Array(0)), "not valid JSON"],
      ["no UTF-8", makeFile("{}", new Uint8Array(0)).fill(0xff, 8), "not valid JSON"],
      ["list", makeFile([], new Uint8Array(0)), "not a JSON object"],
      ["metadata", makeFile({ __metadata__: { a: 1 } }, new Uint8Array(0)), "__metadata__ is not an object of texts"],
      ["entry", makeFile({ w: 3 }, new Uint8Array(0)), 'tensor "w" is not described'],
      ["type", makeFile({ w: { ...tensor, dtype: "toString" } }, new Uint8Array(8)), 'unknown type "toString"'],
      ["shape", makeFile({ w: { ...tensor, shape: [-2] } }, new Uint8Array(8)), "the shape [-2]"],
      ["shape", makeFile({ w: { ...tensor, shape: "2" } }, new Uint8Array(8)), 'the shape "2"'],
      ["offsets", makeFile({ w: { ...tensor, data_offsets: [0.5, 8] } }, new Uint8Array(8)), "not two byte positions"],
      [
        "length",
        makeFile({ w: { ...tensor, shape: [3] } }, new Uint8Array(8)),
        "8 bytes where its type and shape, F32 [3], need 12",
      ],
      ["overflow", makeFile({ w: { ...tensor, shape: [2 ** 40, 2 ** 40] } }, new Uint8Array(8)), "8 bytes where"],
      ["truncated", makeFile({ w: tensor }, new Uint8Array(7)), "the file is truncated or altered"],
      ["longer", makeFile({ w: tensor }, new Uint8Array(9)), "the file is altered"],
      [
        "overlap",
        makeFile({ w: tensor, v: { ...tensor, data_offsets: [4, 12] } }, new Uint8Array(12)),
        'tensor "v" begins',
      ],
      ["gap", makeFile({ w: tensor, v: { ...tensor, data_offsets: [12, 20] } }, new Uint8Array(20)), "leaves a gap"],
    ];
    for (const [label, content, message] of cases) {
      Deno.writeFileSync(path, content);
      const error = assertThrows(() => TensorFile.open(path), Error, message, label);
      assertStringIncludes(error.message, path);
    }
    assertThrows(() => TensorFile.open(join(directory, "none")), Error, "no such file or folder");
    assertThrows(() => TensorFile.open(directory), Error, "it is not a file");
  }));

Deno.test("TensorFile.open() survives mutated and truncated files with clear errors", () =>
  withTempDir(async (directory) => {
    const path = join(directory, "x.safetensors");
    await writeSafetensors(path, [
      { name: "a", dtype: "F32", shape: [4, 2], data: new Float32Array(8) },
      { name: "b", dtype: "BF16", shape: [3], data: new Uint16Array(3) },
    ], { metadata: { format: "pt" } });
    const original = Deno.readFileSync(path);
    const dataBegin = original.length - 38;
    const random = randomIntegers(1);
    let refused = 0;
    for (let round = 0; round < 100; round++) {
      let mutated = original.slice();
      if (round % 4 === 0) mutated = mutated.slice(0, random(original.length));
      else for (let i = 0; i <= random(3); i++) mutated[random(dataBegin)] = random(256);
      Deno.writeFileSync(path, mutated);
      try {
        using file = TensorFile.open(path);
        for (const name of file.tensors.keys()) file.readBytes(name, new Uint8Array(file.info(name).bytes));
      } catch (error) {
        refused++;
        assert(error instanceof RangeError || error instanceof SyntaxError, `round ${round}: ${error}`);
        assertStringIncludes(error.message, path);
      }
    }
    assert(refused >= 60, `only ${refused} of 100 were refused`);
  }));

Deno.test("float32From() widens exactly", () => {
  const drawn = Float32Array.from({ length: 500 }, (_, i) => Math.sin(i) * 10 ** (i % 9 - 4)), into = drawn.slice();
  for (const [dtype, type] of [["F16", "f16"], ["BF16", "bf16"]] as const) {
    float32From(dtype, bytes(encode(type, drawn)), into);
    assertEquals(into, decode(type, encode(type, drawn)), dtype);
  }
  float32From("F32", bytes(drawn), into);
  assertEquals(into, drawn);
});
