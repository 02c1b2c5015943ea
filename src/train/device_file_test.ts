import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { isDeviceFile, parseDevice, readDeviceFile } from "./device_file.ts";

const mine = {
  description: "mine",
  memory: "24GiB",
  limits: { maxBufferSize: "4GiB", maxStorageBufferBindingSize: 2147483644 },
  matmul: 2e13,
  attention: 1e13,
  bandwidth: 9e11,
  dispatch: 3e-6,
  host: { latency: 1e-4, readBack: 5e9, copy: 2e10, upload: 5e9, hop: 2e9 },
};

Deno.test("parseDevice() takes YAML and JSON, amounts of memory as people write them, and leaves out what may be", () => {
  const yaml = `
description: mine
memory: 24GiB
limits: {maxBufferSize: 4GiB, maxStorageBufferBindingSize: 2147483644}
matmul: 2.0e+13
attention: 1.0e+13
bandwidth: 9.0e+11
dispatch: 3.0e-6
host: {latency: 1.0e-4, readBack: 5.0e+9, copy: 2.0e+10, upload: 5.0e+9, hop: 2.0e+9}
`;
  const device = parseDevice(yaml, "mine.yaml");
  assertEquals(device, parseDevice(JSON.stringify(mine), "mine.json"));
  assertEquals([device.memory, device.limits.maxBufferSize, device.switching], [24 * 2 ** 30, 2 ** 32, 0]);
  assertEquals(
    device.units.bfloat16,
    { matmul: 2e13, attention: 1e13 },
    "half types as float32, where nothing is said",
  );
});

Deno.test("parseDevice() tells all that is wrong with a file, and what would work", () => {
  const wrong = { ...mine, memory: "lots", matmul: -1, host: { ...mine.host, hop: "fast" }, colour: "green" };
  const { message } = assertThrows(() => parseDevice(JSON.stringify(wrong), "wrong.json"), RangeError);
  for (const part of ['memory: "lots"', "matmul", "host.hop", "colour", "troupe bench device"]) {
    assertEquals(message.includes(part), true, message);
  }
  assertThrows(() => parseDevice("{", "torn.json"), RangeError, "Cannot read torn.json");
  assertThrows(() => parseDevice("17", "number.yaml"), RangeError, "Cannot use number.yaml as a device");
});

Deno.test("readDeviceFile() says which file is not there", async () => {
  assertEquals(["gpu.json", "a/b.YAML", "h200", "json"].map(isDeviceFile), [true, true, false, false]);
  await assertRejects(() => readDeviceFile("/nowhere/gpu.json"), RangeError, "Cannot read /nowhere/gpu.json");
});
