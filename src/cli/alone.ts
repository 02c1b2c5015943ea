/** One run a folder: two that save into the same one would retire and replace each other's checkpoints. */

/**
 * Holds a folder for this process until it is disposed of, or the process ends in whatever way. Where the file system cannot
 * lock folders, nothing is held.
 *
 * @param field of the record that names the folder, for the message
 * @throws {Error} while another run holds it
 *
 * @example
 * ```ts
 * import { holdAlone } from "./alone.ts";
 * using _held = holdAlone("ckpt.save_ckpt_folder", Deno.makeTempDirSync());
 * ```
 */
export function holdAlone(field: string, path: string): Disposable {
  let folder: Deno.FsFile;
  try {
    folder = Deno.openSync(path);
  } catch {
    return { [Symbol.dispose]() {} }; // some systems open no folders
  }
  let free = true;
  try {
    free = folder.tryLockSync(true);
  } catch {
    // some network file systems know no locks
  }
  if (free) return folder;
  folder.close();
  throw new Error(
    `Cannot save to ${field} ${path}: another run saves there now; its end, or a folder of its own ` +
      `(--set ${field}=local:…), would work`,
  );
}
