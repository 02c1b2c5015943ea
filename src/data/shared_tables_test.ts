import { assert, assertEquals, assertThrows } from "@std/assert";
import { join } from "node:path";
import { RandomState } from "./mt19937.ts";
import { openSharedTables } from "./shared_tables.ts";
import { inScratch } from "./stream/_testing.ts";
import { createTokenFile } from "./token_file_writer.ts";
import { createTrainLoader, type TrainDataOptions } from "./train_loader.ts";

/** Two kinds of data, more samples than a page of the table holds. */
function makeData(folder: string): string {
  const random = new RandomState(2);
  for (const [name, samples] of [["en", 5000], ["code", 30], ["none", 0]] as const) {
    using writer = createTokenFile(join(folder, "data", name, "a.bin"));
    for (let i = 0; i < samples; i++) {
      writer.write(Array.from({ length: random.randomInterval(12) }, () => random.randomInterval(900) - 20));
    }
    if (samples === 0) writer.write([1]); // too short for the test
    writer.finish();
  }
  return join(folder, "data");
}
const names = (folder: string) => [...Deno.readDirSync(folder)].map(({ name }) => name).sort();
const alone = { dataRank: 0, dataWorldSize: 1 };

Deno.test("createTrainLoader() gives the same batches from tables shared by the ranks of a host", () =>
  inScratch(async (folder) => {
    const train_folder = makeData(folder), shm_path = join(folder, "shm/cache");
    for (const more of [{}, { pack_sample_into_one: true }, { use_packed_dataset: false }, { min_length: 7 }]) {
      const data: TrainDataOptions = { train_folder, seq_len: 16, micro_bsz: 2, micro_num: 40, min_length: 2, ...more };
      const shared = { ...data, use_shm: true, shm_path };
      const [own, first, second] = [data, shared, shared].map((options) => createTrainLoader(options, alone));
      assertEquals(first!.rows, own!.rows);
      for (let i = 0; i < 4; i++) {
        const expected = await own!.next();
        assertEquals(await first!.next(), expected);
        assertEquals(await second!.next(), expected);
      }
      assertEquals(names(shm_path).filter((name) => name.endsWith(".table")).length, 1);
      own!.close();
      first!.close();
      assertEquals(names(shm_path).filter((name) => name.endsWith(".table")).length, 1, "it is still in use");
      assertEquals((await second!.next()).rows, 40);
      second!.close();
      assertEquals(names(shm_path), [".lock"]);
    }
  }));

Deno.test("openSharedTables() makes a table once, and anew when its files or the table itself changed", () =>
  inScratch((folder) => {
    const train = makeData(folder), shm = join(folder, "shm"), path = join(train, "en/a.bin");
    const open = () => openSharedTables(shm, [{ path, minLength: 0 }]);
    const first = open(), second = open();
    assertEquals([first.made, second.made, first.tapes[0]!.samples], [true, false, 5000]);
    const table = join(shm, names(shm).find((name) => name.endsWith(".table"))!);
    const whole = Deno.readFileSync(table);
    {
      using writer = createTokenFile(path, { overwrite: true });
      writer.write([5, 6, 7]);
      writer.finish();
    }
    const third = open(), tape = third.tapes[0]!;
    assertEquals([third.made, tape.samples, tape.tokens, tape.end(0), [...tape.read(0)]], [true, 1, 3, 3, [5, 6, 7]]);
    first.close(); // its table was replaced: that of the others stays
    second.close();
    assert(names(shm).some((name) => name.endsWith(".table")));
    third.close();
    assertEquals(names(shm), [".lock"]);
    for (const damaged of [new Uint8Array(0), whole.subarray(0, 100), whole, new Uint8Array(4096).fill(7)]) {
      Deno.writeFileSync(table, damaged);
      const again = open();
      assertEquals([again.made, again.tapes[0]!.samples], [true, 1]);
      again.close();
    }
    assertThrows(() => openSharedTables(path, [{ path, minLength: 0 }]), Error, "data.shm_path");
    const missing = join(train, "en/none.bin");
    assertThrows(() => openSharedTables(shm, [{ path: missing, minLength: 0 }]), Deno.errors.NotFound, missing);
  }));
