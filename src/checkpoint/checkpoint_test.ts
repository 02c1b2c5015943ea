import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { join } from "node:path";
import {
  boxValues,
  entriesOf,
  type Layout,
  randomIntegers,
  save,
  shapes,
  splitAxis,
  tensors,
  withTempDir,
} from "./_testing.ts";
import { type Box, boxesOfFlatRange, wholeBox } from "./box.ts";
import { listCheckpoints, newestUsable, retireOld, verifyCheckpoint } from "./catalog.ts";
import { CheckpointError, openCheckpoint } from "./checkpoint.ts";
import { sha256Hex } from "./durable.ts";
import { COMMIT_FILE, MANIFEST_FILE, type ShardReport } from "./manifest.ts";
import { elementCount } from "./safetensors.ts";
import {
  abandonCheckpoint,
  beginCheckpoint,
  commitCheckpoint,
  saveCheckpoint,
  wholeEntry,
  writeShard,
} from "./save.ts";

const one = splitAxis(0, 1);
const layouts: readonly [string, Layout, number][] = [
  ["one writer", one, 1],
  ["rows over 2", splitAxis(0, 2), 2],
  ["columns over 3", splitAxis(1, 3), 3],
  ["rows of columns", (shape, writer) => {
    if (shape.length < 2) return splitAxis(0, 4)(shape, writer);
    const [half] = splitAxis(0, 2)(shape, writer >> 1);
    const columns = Math.floor(shape[1] / 2);
    const offset = [...half.offset], extent = [...half.extent];
    offset[1] = writer % 2 === 0 ? 0 : columns;
    extent[1] = writer % 2 === 0 ? columns : shape[1] - columns;
    return [{ offset, extent }];
  }, 4],
  ["flat ranges over 5", (shape, writer) => {
    const total = elementCount(shape);
    return boxesOfFlatRange(shape, Math.floor(total * writer / 5), Math.floor(total * (writer + 1) / 5));
  }, 5],
];

Deno.test("readBox() gives any layout what any other saved", () =>
  withTempDir(async (folder) => {
    for (const [step, [, layout, writers]] of layouts.entries()) await save(folder, step + 1, layout, writers);
    for (const step of layouts.keys()) {
      using checkpoint = openCheckpoint(join(folder, String(step + 1)));
      assertEquals(checkpoint.manifest.state, { position: (step + 1) * 8 });
      assertEquals(checkpoint.names("moment2").sort(), Object.keys(shapes).sort());
      for (const [reader, layout, readers] of layouts) {
        for (const tensor of tensors) {
          for (let rank = 0; rank < readers; rank++) {
            for (const box of layout(tensor.shape, rank)) {
              const into = new Float32Array(elementCount(box.extent));
              checkpoint.readBox(tensor.kind, tensor.name, box, into);
              assertEquals(into, boxValues(tensor, step + 1, box), `${layouts[step][0]} read by ${reader}`);
            }
          }
        }
      }
    }
  }));

Deno.test("readBox() reads strided pieces of a larger tensor", () =>
  withTempDir(async (folder) => {
    const shape = [300, 1200]; // wider than the window that gathers close runs
    const data = Float32Array.from({ length: elementCount(shape) }, (_, i) => i);
    await saveCheckpoint({
      folder,
      step: 1,
      entries: [{
        ...wholeEntry("parameter", "w", shape, data),
        data: () => [data.subarray(0, 1000), data.subarray(1000)],
      }],
      layout: null,
      state: null,
      config: "",
    });
    using checkpoint = openCheckpoint(join(folder, "1"));
    const boxes: Box[] = [
      { offset: [0, 0], extent: [300, 600] }, // close runs
      { offset: [7, 1199], extent: [293, 1] }, // far ones
      { offset: [299, 0], extent: [1, 1200] },
      wholeBox(shape),
    ];
    for (const box of boxes) {
      const into = new Float32Array(elementCount(box.extent));
      checkpoint.readBox("parameter", "w", box, into);
      let at = 0;
      for (let row = box.offset[0]; row < box.offset[0] + box.extent[0]; row++) {
        for (let column = box.offset[1]; column < box.offset[1] + box.extent[1]; column++) {
          if (into[at++] !== row * 1200 + column) throw new Error(`wrong at ${row}, ${column}`);
        }
      }
    }
  }));

Deno.test("Checkpoint refuses wrong names, shapes, boxes and arrays with both values", () =>
  withTempDir(async (folder) => {
    await save(folder, 3, one, 1);
    using checkpoint = openCheckpoint(join(folder, "3"));
    assertEquals(checkpoint.shape("parameter", "norm.weight"), [7]);
    assertEquals(checkpoint.shape("parameter", "none"), undefined);
    checkpoint.expectTensor("moment1", "norm.weight", [7]);
    const read = (name: string, box: Box, size: number) => () =>
      checkpoint.readBox("parameter", name, box, new Float32Array(size));
    assertThrows(
      () => checkpoint.expectTensor("parameter", "norm.weight", [8]),
      RangeError,
      "[7] where the model needs [8]",
    );
    assertThrows(() => checkpoint.expectTensor("parameter", "none", [8]), RangeError, "it has none, of shape [8]");
    assertThrows(() => checkpoint.readTensor("parameter", "none"), RangeError, "none of that name");
    assertThrows(read("none", wholeBox([7]), 7), RangeError, "none of that name");
    assertThrows(read("norm.weight", { offset: [3], extent: [5] }, 5), RangeError, "no box inside the shape [7]");
    assertThrows(read("norm.weight", { offset: [3], extent: [2] }, 3), RangeError, "[3:5] has 2 elements, the array 3");
    assertEquals([...checkpoint.readTensor("parameter", "scale")], [...boxValues(tensors[3], 3, wholeBox([]))]);
  }));

Deno.test("commitCheckpoint() refuses gaps, overlaps, strangers and bad state, and removes the attempt", () =>
  withTempDir(async (folder) => {
    await save(folder, 1, one, 1);
    const halves = splitAxis(0, 2);
    const attempt = async (
      edit: (shards: ShardReport[], directory: string) => Partial<Parameters<typeof commitCheckpoint>[0]>,
    ) => {
      const directory = await beginCheckpoint(folder, 2);
      const shards = [0, 1].map((writer) => writeShard({ directory, writer, entries: entriesOf(2, halves, writer) }));
      const reports = await Promise.all(shards);
      await commitCheckpoint({
        directory,
        step: 2,
        shards: reports,
        tensors,
        layout: {},
        state: {},
        config: "",
        ...edit(reports, directory),
      });
    };
    const cases: [Parameters<typeof attempt>[0], string][] = [
      [
        ([first]) => ({ shards: [first] }),
        "parameter/layers.0.attention.wq.weight is not stored exactly once: its boxes hold 12 of the 24",
      ],
      [([first]) => ({ shards: [first, first] }), "overlap"],
      [
        () => ({ tensors: tensors.slice(1) }),
        "parameter/layers.0.attention.wq.weight, which is none of the run's tensors",
      ],
      [
        () => ({ tensors: [...tensors, { kind: "moment1", name: "extra", shape: [2] }] }),
        "moment1/extra is not stored",
      ],
      [() => ({ tensors: tensors.map((t) => t.name === "norm.weight" ? { ...t, shape: [8] } : t) }), "elsewhere [8]"],
      [(_, directory) => {
        Deno.truncateSync(join(directory, "shard-00001.safetensors"), 100);
        return {};
      }, "shard-00001.safetensors has 100 bytes where"],
      [(_, directory) => {
        Deno.removeSync(join(directory, "shard-00001.safetensors"));
        return {};
      }, "no such file or folder"],
      [() => ({ step: 4 }), "it was begun as another"],
      [
        () => ({ state: { scale: [1, NaN] } }),
        "state.scale[1]: it must be plain JSON to come back unchanged: current value is NaN",
      ],
      [() => ({ state: { seeds: new Uint32Array(2) as unknown as null } }), "current value is Uint32Array"],
    ];
    for (const [edit, message] of cases) {
      await assertRejects(() => attempt(edit), Error, message);
      assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["1"], message);
    }
    await attempt(() => ({}));
    assertEquals(listCheckpoints(folder).map(({ step, status }) => [step, status]), [[2, "complete"], [1, "complete"]]);
  }));

Deno.test("writeShard() and beginCheckpoint() refuse bad arguments; abandonCheckpoint() never removes a checkpoint", () =>
  withTempDir(async (folder) => {
    const directory = await beginCheckpoint(folder, 1);
    const entry = wholeEntry("parameter", "w", [2], new Float32Array(2));
    const write = (change: object) => writeShard({ directory, writer: "a", entries: [{ ...entry, ...change }] });
    await assertRejects(() => write({ offset: [1] }), RangeError, "Cannot save parameter/w: offset [1] and extent [2]");
    await assertRejects(() => writeShard({ directory, writer: "../a", entries: [] }), RangeError, "writer must be of");
    await assertRejects(() => write({ data: new Float32Array(3) }), RangeError, "needs 8 bytes");
    await assertRejects(() => beginCheckpoint(folder, 1.5), RangeError, "current value is 1.5");
    await abandonCheckpoint(directory);
    const saved = await save(folder, 5, one, 1);
    await abandonCheckpoint(saved);
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["5"]);
    await assertRejects(() => beginCheckpoint(join(saved, MANIFEST_FILE), 1), Error, "a part of the path is a file");
  }));

Deno.test("commitCheckpoint() replaces a checkpoint of the same step", () =>
  withTempDir(async (folder) => {
    const entries = (value: number) => [wholeEntry("parameter", "w", [1], new Float32Array([value]))];
    const rest = { folder, step: 7, layout: {}, state: {}, config: "" };
    await saveCheckpoint({ ...rest, entries: entries(1) });
    const directory = await saveCheckpoint({ ...rest, entries: entries(2) });
    assertEquals(directory, join(folder, "7"));
    assertEquals([...Deno.readDirSync(folder)].map(({ name }) => name), ["7"]);
    using checkpoint = openCheckpoint(directory);
    assertEquals([...checkpoint.readTensor("parameter", "w")], [2]);
  }));

/** Damages a copy of a checkpoint in every way that matters. */
const damages: readonly [string, (directory: string) => void, "torn" | "corrupt", string][] = [
  ["no mark", (dir) => Deno.removeSync(join(dir, COMMIT_FILE)), "torn", "no commit mark"],
  ["half a mark", (dir) => Deno.truncateSync(join(dir, COMMIT_FILE), 30), "torn", "mark is incomplete"],
  ["no manifest", (dir) => Deno.removeSync(join(dir, MANIFEST_FILE)), "corrupt", "manifest.json is missing"],
  ["short manifest", (dir) => Deno.truncateSync(join(dir, MANIFEST_FILE), 200), "corrupt", "not what was committed"],
  [
    "no shard",
    (dir) => Deno.removeSync(join(dir, "shard-00001.safetensors")),
    "corrupt",
    "00001.safetensors is missing",
  ],
  [
    "short shard",
    (dir) => Deno.truncateSync(join(dir, "shard-00000.safetensors"), 900),
    "corrupt",
    "has 900 bytes where",
  ],
  [
    "another step's",
    (dir) => {
      Deno.renameSync(dir, `${dir}0`);
      Deno.mkdirSync(dir);
    },
    "torn",
    "no commit mark",
  ],
  [
    "one bit",
    (dir) => {
      const path = join(dir, "shard-00001.safetensors");
      const bytes = Deno.readFileSync(path);
      bytes[bytes.length - 3] ^= 4;
      Deno.writeFileSync(path, bytes);
    },
    "corrupt",
    "shard-00001.safetensors is not what was committed (its SHA-256 differs)",
  ],
];

Deno.test("newestUsable() skips torn, truncated and altered checkpoints with a sentence each", async (t) => {
  for (const [label, damage, status, message] of damages) {
    await t.step(label, () =>
      withTempDir(async (folder) => {
        await save(folder, 10, splitAxis(0, 2), 2);
        const newest = await save(folder, 20, splitAxis(0, 2), 2);
        damage(newest);
        const error = await assertRejects(() => verifyCheckpoint(newest), CheckpointError, message);
        assertEquals(error.status, status);
        const sentences: string[] = [];
        using checkpoint = await newestUsable(folder, { onSkipped: (sentence) => sentences.push(sentence) });
        assertEquals(checkpoint?.step, 10);
        const own = sentences.filter((sentence) => sentence.includes(`${newest} `));
        assertEquals(own.length, 1);
        assertStringIncludes(own[0], message);
      }));
  }
});

Deno.test("newestUsable() finds nothing where nothing is, and looks through several folders", () =>
  withTempDir(async (folder) => {
    assertEquals(await newestUsable(join(folder, "none")), undefined);
    assertEquals(await newestUsable(folder), undefined);
    await save(join(folder, "a"), 10, one, 1);
    await save(join(folder, "b"), 12, one, 1);
    await save(join(folder, "b"), 10, one, 1);
    Deno.mkdirSync(join(folder, "a", "snapshot"));
    Deno.mkdirSync(join(folder, "a", "12_hf"));
    Deno.writeTextFileSync(join(folder, "a", "99"), "a file is no checkpoint");
    const both = [join(folder, "a"), join(folder, "b")];
    using newest = await newestUsable(both);
    assertEquals(newest?.directory, join(folder, "b", "12"));
    assertEquals(listCheckpoints(both).map(({ directory }) => directory), [
      join(folder, "b", "12"),
      join(folder, "a", "10"),
      join(folder, "b", "10"),
    ]);
    assertThrows(() => listCheckpoints(join(folder, "a", "99")), Error, "a part of the path is a file");
  }));

Deno.test("openCheckpoint() says what to do with a checkpoint of InternEvo's", () =>
  withTempDir((folder) => {
    Deno.writeTextFileSync(join(folder, "40.step"), "");
    assertThrows(() => openCheckpoint(folder), CheckpointError, "convert it to a Hugging Face folder");
    assertThrows(() => openCheckpoint(join(folder, "none")), Error, "no such file or folder");
  }));

Deno.test("openCheckpoint() survives mutated manifests, even under a mark that fits them", () =>
  withTempDir(async (folder) => {
    const directory = await save(folder, 1, splitAxis(0, 2), 2);
    const original = Deno.readFileSync(join(directory, MANIFEST_FILE));
    const random = randomIntegers(3);
    let refused = 0;
    for (let round = 0; round < 100; round++) {
      let mutated = original.slice();
      if (round % 4 === 0) mutated = mutated.slice(0, random(original.length));
      else for (let i = 0; i <= random(4); i++) mutated[random(mutated.length)] = 32 + random(95);
      Deno.writeFileSync(join(directory, MANIFEST_FILE), mutated);
      const text = new TextDecoder().decode(mutated);
      Deno.writeTextFileSync(join(directory, COMMIT_FILE), sha256Hex(text) + "\n");
      try {
        using checkpoint = openCheckpoint(directory);
        for (const kind of ["parameter", "moment1", "moment2"] as const) {
          for (const name of checkpoint.names(kind)) checkpoint.readTensor(kind, name);
        }
      } catch (error) {
        refused++;
        assert(error instanceof CheckpointError && error.status === "corrupt", `round ${round}: ${error}`);
        assertStringIncludes(error.message, `Checkpoint ${directory} is corrupt: `);
      }
    }
    assert(refused >= 60, `only ${refused} of 100 were refused`);
  }));

Deno.test("retireOld() keeps the newest, clears leftovers, and leaves what is not ours", () =>
  withTempDir(async (folder) => {
    for (const step of [10, 20, 30, 40]) await save(folder, step, one, 1);
    const torn = await beginCheckpoint(folder, 25);
    const underWay = await beginCheckpoint(folder, 50);
    Deno.mkdirSync(join(folder, "15")); // another program's
    await save(folder, 35, one, 1);
    Deno.truncateSync(join(folder, "35", "shard-00000.safetensors"), 9);
    await save(folder, 5, one, 1);
    Deno.truncateSync(join(folder, "5", "shard-00000.safetensors"), 9);
    const { removed, failed } = await retireOld(folder, 2);
    assertEquals(failed, []);
    assertEquals([...removed].sort(), [join(folder, "10"), join(folder, "20"), join(folder, "5"), torn].sort());
    const left = [...Deno.readDirSync(folder)].map(({ name }) => join(folder, name)).sort();
    assertEquals(left, ["15", "30", "35", "40"].map((name) => join(folder, name)).concat(underWay).sort());
    assertEquals((await retireOld(folder, Infinity)).removed, []);
    await assertRejects(() => retireOld(folder, 0), RangeError, "keepLast must be at least 1: current value is 0");
  }));

Deno.test("retireOld() leaves later checkpoints of an earlier course alone", () =>
  withTempDir(async (folder) => {
    for (const step of [10, 20, 300]) await save(folder, step, one, 1);
    assertEquals((await retireOld(folder, 1, { upTo: 20 })).removed, [join(folder, "10")]);
    assertEquals(listCheckpoints(folder).map(({ step }) => step), [300, 20]);
  }));

Deno.test("retireOld() reports what it cannot remove and goes on", () =>
  withTempDir(async (folder) => {
    for (const step of [10, 20, 30]) await save(folder, step, one, 1);
    // Stood in for: nothing that a test may do stops root from removing a file.
    const remove = Deno.remove;
    try {
      Deno.remove = ((path: string, options?: Deno.RemoveOptions) =>
        String(path).includes("20.tmp-")
          ? Promise.reject(new Deno.errors.PermissionDenied("Operation not permitted (os error 1)"))
          : remove(path, options)) as typeof Deno.remove;
      const { removed, failed } = await retireOld(folder, 1);
      assertEquals(removed, [join(folder, "10")]);
      assertEquals(failed.length, 1);
      assertStringIncludes(failed[0], `Cannot remove old checkpoint ${join(folder, "20")}: permission denied`);
    } finally {
      Deno.remove = remove;
    }
    assertEquals((await retireOld(folder, 1)).removed.length, 1, "the next time finishes it");
    assertEquals(listCheckpoints(folder).map(({ step }) => step), [30]);
  }));
