/** Where checkpoints go: InternEvo's prefixed paths. The file system works; object stores are refused by name. */
import { join } from "node:path";
import { fileError } from "./durable.ts";

export interface StoragePath {
  readonly backend: "local";
  /** Plain path of the file system. */
  readonly path: string;
  /** Something to tell the user once. */
  readonly notice?: string;
}

const OBJECT_STORES: Readonly<Record<string, string>> = {
  boto3: "S3-compatible object stores",
  s3: "S3-compatible object stores",
  volc: "Volcano Engine TOS",
  vc: "Volcano Engine TOS",
  oss2: "Alibaba Cloud OSS",
  ali: "Alibaba Cloud OSS",
};

/**
 * Parses `local:folder` or a plain path.
 *
 * @throws {RangeError} for a prefix that names anything else, saying what works
 */
export function parseStoragePath(text: string): StoragePath {
  const prefix = /^([A-Za-z][\w+.-]*):/.exec(text)?.[1]; // no slash before the colon, so `./a:b` has none
  const path = prefix === undefined ? text : text.slice(prefix.length + 1);
  if (prefix !== undefined && prefix !== "local") {
    const store = Object.hasOwn(OBJECT_STORES, prefix) ? OBJECT_STORES[prefix] : undefined;
    throw new RangeError(
      store === undefined
        ? `Cannot use storage path ${text}: the prefix ${prefix}: is unknown; local:FOLDER or a plain path works`
        : `Cannot use storage path ${text}: ${store} are not supported yet; ` +
          `local:FOLDER or a plain path works, on a mounted bucket too`,
    );
  }
  if (path === "") throw new RangeError(`Cannot use storage path ${JSON.stringify(text)}: it names no folder`);
  if (prefix === "local") return { backend: "local", path };
  return { backend: "local", path, notice: `The path ${text} has no storage prefix: taken as local:${text}` };
}

/** Joins names to a storage path, keeping its prefix. */
export function joinStoragePath(base: string, ...names: string[]): string {
  const { path } = parseStoragePath(base);
  return (base.startsWith("local:") ? "local:" : "") + join(path, ...names);
}

/**
 * Proves that a folder can be written and read, before a run relies on it: writes `pings/{name}.ping`, reads it back and
 * removes it.
 *
 * @param name tells hosts apart that ping the same folder
 * @throws a sentence with the cause when it cannot
 */
export async function storagePing(folder: string, name: string): Promise<void> {
  const { path } = parseStoragePath(folder);
  const pings = join(path, "pings");
  const file = join(pings, `${name.replaceAll(/[^\w.-]/g, "_")}.ping`);
  const sent = crypto.getRandomValues(new Uint8Array(64));
  let received: Uint8Array;
  try {
    await Deno.mkdir(pings, { recursive: true });
    await Deno.writeFile(file, sent);
    received = await Deno.readFile(file);
    await Deno.remove(file);
    await Deno.remove(pings).catch(() => {}); // other hosts may be pinging in it
  } catch (error) {
    throw fileError("save checkpoints: the storage test failed to write and read", file, error, sent.length);
  }
  if (received.length !== sent.length || received.some((byte, i) => byte !== sent[i])) {
    throw new Error(`Cannot save checkpoints: ${file} did not read back as it was written: the storage is faulty`);
  }
}
