/** Writes that survive a crash or a power cut, and file errors said in one sentence. */
import { createHash } from "node:crypto";
import { statfsSync } from "node:fs";
import { dirname } from "node:path";
import { formatBytes } from "../observe/format.ts";

/** The disk (or the quota) is full. Nothing that was there before has been touched. */
export class DiskFullError extends Error {
  override readonly name = "DiskFullError";
  constructor(
    message: string,
    readonly bytesNeeded: number | undefined,
    /** Free bytes once what was partly written is gone; unknown without the permission to ask. */
    readonly bytesAvailable: number | undefined,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

export function sha256Hex(data: string | Uint8Array): string {
  return createHash("sha256").update(data).digest("hex");
}

/** Free bytes for this user on the file system of `path`, where that may be asked (`--allow-sys=statfs`). */
function availableBytes(path: string): number | undefined {
  try {
    // Asked first: statfs alone would stop a person's run with a prompt.
    const permission = { name: "sys", kind: "statfs" } as unknown as Deno.PermissionDescriptor;
    if (Deno.permissions.querySync(permission).state !== "granted") return undefined;
    const { bavail, bsize } = statfsSync(path);
    return bavail * bsize;
  } catch {
    return undefined; // a figure for a message, never worth an error of its own
  }
}

/**
 * Turns an operating-system error into one that says what failed, where and why. Errors of our own pass through.
 *
 * @param action what failed, e.g. `write checkpoint shard`
 */
export function fileError(action: string, path: string, error: unknown, bytesNeeded?: number): Error {
  if (!(error instanceof Error)) return new Error(`Cannot ${action} ${path}: ${error}`);
  const code = (error as { code?: string }).code;
  if (code === "ENOSPC" || code === "EDQUOT") {
    const available = availableBytes(path) ?? availableBytes(dirname(path));
    const figures = [
      bytesNeeded === undefined ? "" : `${formatBytes(bytesNeeded)} are needed`,
      available === undefined ? "" : `${formatBytes(available)} are available`,
    ].filter((text) => text !== "").join(" and ");
    return new DiskFullError(
      `Cannot ${action} ${path}: the disk is full${figures === "" ? "" : `: ${figures}`}. ` +
        `What was there before is kept; free some space, or choose another folder`,
      bytesNeeded,
      available,
      { cause: error },
    );
  }
  const reason = error instanceof Deno.errors.NotFound
    ? "no such file or folder"
    : error instanceof Deno.errors.PermissionDenied
    ? "permission denied by the operating system"
    : error instanceof Deno.errors.NotADirectory
    ? "a part of the path is a file, not a folder"
    : code === "EROFS"
    ? "the file system is read-only"
    : error instanceof Deno.errors.NotCapable
    ? "this program may not write there; TROUPE_WRITE=,FOLDER before the command (or Deno's --allow-write) allows a folder"
    : code !== undefined || error instanceof Deno.errors.BadResource
    ? error.message.replace(/ \(os error \d+\).*/s, "") // what follows repeats the path
    : undefined;
  return reason === undefined ? error : new Error(`Cannot ${action} ${path}: ${reason}`, { cause: error });
}

/** Makes names created, renamed or removed in a folder durable. */
export async function syncDirectory(path: string): Promise<void> {
  using directory = await Deno.open(path);
  await directory.sync();
}

/** Writes a new small file and makes its content durable; its name needs `syncDirectory` as well. */
export async function writeTextDurably(path: string, text: string): Promise<void> {
  const bytes = new TextEncoder().encode(text);
  using file = await Deno.open(path, { write: true, create: true, truncate: true });
  await writeAll(file, bytes);
  await file.sync();
}

/** Writes every byte: one write call may take fewer. */
export async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const written = await file.write(bytes.subarray(done));
    if (written === 0) throw new Error(`Cannot write: the file system took 0 of ${bytes.length - done} bytes`);
    done += written;
  }
}

/** Fills `into` from `position` of the file. @throws {RangeError} when the file ends first. */
export function readAllAt(file: Deno.FsFile, position: number, into: Uint8Array, path: string): void {
  file.seekSync(position, Deno.SeekMode.Start);
  for (let done = 0; done < into.length;) {
    const count = file.readSync(into.subarray(done));
    if (count === null) {
      throw new RangeError(
        `Cannot read ${path}: it ends at byte ${position + done}, ` +
          `${into.length - done} bytes early: the file is truncated`,
      );
    }
    done += count;
  }
}
