import { assertEquals, assertThrows } from "@std/assert";
import { parseStoragePath } from "./storage.ts";

Deno.test("parseStoragePath() takes local paths and refuses object stores by name", () => {
  for (const path of ["/ckpt/a:b", "./a:b", "llm_ckpts", "llm_ckpts/x"]) {
    assertEquals([parseStoragePath(path), parseStoragePath(`local:${path}`)], [path, path]);
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
