/** Where checkpoints go: InternEvo's prefixed paths. The file system works; object stores are refused by name. */

const OBJECT_STORES: Readonly<Record<string, string>> = {
  boto3: "S3-compatible object stores",
  s3: "S3-compatible object stores",
  volc: "Volcano Engine TOS",
  vc: "Volcano Engine TOS",
  oss2: "Alibaba Cloud OSS",
  ali: "Alibaba Cloud OSS",
};

/**
 * The folder that `local:folder` or a plain path names.
 *
 * @throws {RangeError} for a prefix that names anything else, saying what works
 */
export function parseStoragePath(text: string): string {
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
  return path;
}
