import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { join } from "node:path";
import { withTempDir } from "./_testing.ts";
import { joinStoragePath, parseStoragePath, storagePing } from "./storage.ts";

Deno.test("parseStoragePath() takes local paths and refuses object stores by name", () => {
  assertEquals(parseStoragePath("local:/ckpt/a:b"), { backend: "local", path: "/ckpt/a:b" });
  assertEquals(parseStoragePath("local:llm_ckpts"), { backend: "local", path: "llm_ckpts" });
  for (const path of ["/ckpt", "./a:b", "llm_ckpts/x"]) {
    const parsed = parseStoragePath(path);
    assertEquals(parsed.path, path);
    assertEquals(parsed.notice, `The path ${path} has no storage prefix: taken as local:${path}`);
  }
  const refused: [string, string][] = [
    ["boto3:s3://bucket.endpoint/path", "S3-compatible object stores are not supported yet; local:FOLDER"],
    ["s3://bucket/path", "S3-compatible"],
    ["volc:vc://bucket.endpoint/path", "Volcano Engine TOS are"],
    ["vc://bucket/path", "Volcano"],
    ["oss2:ali://bucket.endpoint/path", "Alibaba Cloud OSS"],
    ["ali://bucket/path", "Alibaba"],
    ["ftp://host/path", "the prefix ftp: is unknown; local:FOLDER or a plain path works"],
    ["constructor:x", "the prefix constructor: is unknown"],
    ["local:", "names no folder"],
    ["", "names no folder"],
  ];
  for (const [path, message] of refused) assertThrows(() => parseStoragePath(path), RangeError, message);
});

Deno.test("joinStoragePath() keeps the prefix", () => {
  assertEquals(joinStoragePath("local:/ckpt/", "snapshot", "0"), "local:/ckpt/snapshot/0");
  assertEquals(joinStoragePath("ckpt", "20"), "ckpt/20");
  assertThrows(() => joinStoragePath("s3://b", "20"), RangeError, "not supported yet");
});

Deno.test("storagePing() writes, reads and tidies up, and says why it cannot", () =>
  withTempDir(async (folder) => {
    await storagePing(`local:${join(folder, "new")}`, "host/1");
    assertEquals([...Deno.readDirSync(join(folder, "new"))], []);
    Deno.writeTextFileSync(join(folder, "file"), "");
    await assertRejects(() => storagePing(join(folder, "file"), "host"), Error, "a part of the path is a file");
    await assertRejects(() => storagePing("/proc/nowhere", "host"), Error, "the storage test failed to write and read");
  }));
