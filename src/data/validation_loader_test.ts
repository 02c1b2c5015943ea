import { assertEquals, assertThrows } from "@std/assert";
import { join } from "node:path";
import { closeTokenFiles } from "./token_file.ts";
import { createTokenFile } from "./token_file_writer.ts";
import { createValidationLoaders } from "./validation_loader.ts";

Deno.test("createValidationLoaders() deals samples in order and leaves small sets out on every rank", () => {
  const folder = Deno.makeTempDirSync();
  try {
    const sets = { big: 11, small: 3 };
    for (const [name, samples] of Object.entries(sets)) {
      using writer = createTokenFile(join(folder, name, "a.bin"));
      writer.write([9, 9, 9]); // shorter than any validation sample
      for (let i = 0; i < samples; i++) writer.write(Array.from({ length: 60 }, (_, k) => k === 1 ? -(i + 1) : i + 1));
      writer.finish();
    }
    const data = { valid_folder: folder, seq_len: 64, micro_bsz: 2, micro_num: 4, valid_micro_num: 2 };
    for (const dataRank of [0, 1]) {
      const notices: string[] = [];
      const loaders = createValidationLoaders(data, {
        dataRank,
        dataWorldSize: 2,
        onNotice: (text) => notices.push(text),
      });
      assertEquals(loaders.map(({ name, length, batchRows }) => [name, length, batchRows]), [["big", 1, 4]]);
      assertEquals(notices.length, 1);
      for (let pass = 0; pass < 2; pass++) {
        const [batch] = [...loaders[0].batches()];
        assertEquals(batch.length, 2);
        const firstTokens = batch.flatMap(({ inputIds }) => [inputIds[0], inputIds[64]]);
        assertEquals(firstTokens, [1, 3, 5, 7].map((token) => token + dataRank));
        const { labels, inputIds, segments, positions } = batch[0];
        assertEquals([segments, positions[63], positions[64]], [2, 63, 0]);
        assertEquals([labels[0], labels[1], labels[58], labels[59], labels[63]], [
          -100,
          inputIds[0],
          inputIds[0],
          -100,
          -100,
        ]);
      }
    }
    assertThrows(() =>
      createValidationLoaders({ ...data, valid_folder: join(folder, "none") }, { dataRank: 0, dataWorldSize: 1 })
    );
  } finally {
    closeTokenFiles();
    Deno.removeSync(folder, { recursive: true });
  }
});

Deno.test("createValidationLoaders() has the dummy set where there is no folder", () => {
  const [loader] = createValidationLoaders({ seq_len: 8, micro_bsz: 4, micro_num: 5 }, {
    dataRank: 2,
    dataWorldSize: 3,
  });
  assertEquals([loader.name, loader.batchRows, loader.length], ["val", 20, 25]);
});
