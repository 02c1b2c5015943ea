import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import { parseDevice } from "../train/device_file.ts";
import { inScratch, tinyRun, troupe } from "./_testing.ts";

Deno.test("bench device prints a file that plan --device takes", () =>
  inScratch(async (folder) => {
    const ran = await troupe("bench", "device", "--backend", "cpu", "--repeats", "1");
    assertEquals(ran.code, 0, ran.err);
    const file = `${folder}/mine.json`, device = parseDevice(ran.out, file);
    assertEquals(device.description, "CPU reference");
    for (const rate of [device.matmul, device.bandwidth, ...Object.values(device.host)]) assert(rate > 0, ran.out);
    await Deno.writeTextFile(file, ran.out);
    const { config } = await tinyRun(folder);
    const planned = await troupe("plan", "--config", config, "--world", "2", "--device", file, "--per_host", "2");
    assertEquals(planned.code, 0, planned.err);
    assertStringIncludes(planned.out, "2 x CPU reference on 1 machine");
  }));
