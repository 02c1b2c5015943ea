/** Folders of a record that must be writable: found out before work begins, not when its first result is lost. */
import { resolve } from "node:path";
import { fileError } from "../checkpoint/durable.ts";
import { programForm } from "./self.ts";

/**
 * Makes the folder where it is missing, and makes sure that files can be put there and read back.
 *
 * @param field of the record that names it, for the message
 * @throws {Error} saying what to type, where this program or the system forbids it
 *
 * @example
 * ```ts
 * import { requireWritable } from "./writable.ts";
 * requireWritable("ckpt.save_ckpt_folder", Deno.makeTempDirSync() + "/checkpoints");
 * ```
 */
export function requireWritable(field: string, path: string): void {
  const folder = resolve(path);
  requireAllowed(field, path);
  const probe = `${folder}/.writable-${crypto.randomUUID()}`, content = `${crypto.randomUUID()}\n`.repeat(128);
  try {
    Deno.mkdirSync(folder, { recursive: true });
    // Of some length: an empty file fits on a full disk.
    Deno.writeTextFileSync(probe, content, { createNew: true });
    if (Deno.readTextFileSync(probe) !== content) {
      throw new Error(`Cannot write to ${field} ${path}: what was written read back as something else`);
    }
  } catch (error) {
    if (error instanceof Deno.errors.AlreadyExists) {
      throw new Error(`Cannot write to ${field} ${path}: it is a file, and a folder is needed`);
    }
    throw fileError(`write to ${field}`, path, error, content.length);
  } finally {
    try {
      Deno.removeSync(probe);
    } catch {
      // it was never made, or the disk has failed, which has been said
    }
  }
}

/**
 * Makes sure that this program was given the permission to write there, before it works for something that it could not
 * keep; what the system says to it is not asked.
 *
 * @param field or argument that names the place, for the message
 * @param folder what to allow, where the place itself is a file
 * @throws {Error} saying what to type
 */
export function requireAllowed(field: string, path: string, folder = path): void {
  if (Deno.permissions.querySync({ name: "write", path: resolve(path) }).state === "granted") return;
  if (resolve(folder).includes(",")) {
    throw new Error(
      `Cannot write to ${field} ${path}: Deno allows no folder with a comma in its name; another would work`,
    );
  }
  const otherwise = programForm === "compiled"
    ? ""
    : `; TROUPE_WRITE=,${resolve(folder)} before the command allows this one`;
  throw new Error(`Cannot write to ${field} ${path}: only ${Deno.cwd()} may be written to${otherwise}`);
}
