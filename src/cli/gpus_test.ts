import { assertEquals } from "@std/assert";
import { listGpus } from "./gpus.ts";

Deno.test("listGpus() tells cards of GPU makers from what else is on the bus, and those of others", async () => {
  const folder = await Deno.makeTempDir(), visible = await Deno.makeTempDir();
  try {
    const devices: [place: string, kind: string, vendor: string][] = [
      ["0000:41:00.0", "0x030200", "0x10de"], // an accelerator
      ["0000:81:00.0", "0x030200", "0x10de"], // another container's
      ["0000:03:00.0", "0x030000", "0x1002"], // a card with outputs
      ["0000:03:00.1", "0x040300", "0x1002"], // its sound
      ["0000:00:02.0", "0x030000", "0x1234"], // a virtual machine's display
      ["0000:00:1f.2", "0x010601", "0x8086"],
    ];
    for (const [place, kind, vendor] of devices) {
      Deno.mkdirSync(`${folder}/${place}`);
      Deno.writeTextFileSync(`${folder}/${place}/class`, `${kind}\n`);
      Deno.writeTextFileSync(`${folder}/${place}/vendor`, `${vendor}\n`);
    }
    Deno.mkdirSync(`${folder}/0000:99:00.0`); // gone while we look
    assertEquals(listGpus(folder, `${folder}/nowhere`), ["0000:03:00.0", "0000:41:00.0", "0000:81:00.0"]);
    assertEquals(listGpus(`${folder}/nowhere`), []);
    Deno.mkdirSync(`${visible}/0000:41:00.0`);
    assertEquals(listGpus(folder, visible), ["0000:03:00.0", "0000:41:00.0"]);
  } finally {
    for (const each of [folder, visible]) await Deno.remove(each, { recursive: true });
  }
});
