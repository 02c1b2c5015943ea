/**
 * Unix sockets between the ranks of one host: a byte costs less than half of what it does over TCP and loopback. They lie in
 * a folder that only this user can enter, with a name that nobody guesses, and only until the ranks have met: a connection
 * needs no name. What is left by ranks that are killed meanwhile is a folder of empty files, which the next start of the
 * same run takes over. Where there can be none (no such system, no permission, a path too long) ranks meet over TCP.
 */
import type { Gate } from "./gate.ts";

const folderOf = (path: string) => path.slice(0, path.lastIndexOf("/"));

/** Whether ranks with these sockets are of one host: the folder's name says it. */
export const sameHost = (a: string | undefined, b: string | undefined): boolean =>
  a !== undefined && b !== undefined && folderOf(a) === folderOf(b);

/** A folder for the sockets of one run's ranks on this host, which they make; nothing where there can be none. */
export function socketFolder(): string | undefined {
  if (Deno.build.os === "windows") return undefined;
  const name = crypto.randomUUID();
  for (const variable of ["XDG_RUNTIME_DIR", "TMPDIR"]) {
    const folder = Deno.env.get(variable);
    // Longer names than about a hundred bytes a socket cannot have; a comma Deno's flags cannot express.
    if (folder?.startsWith("/") && folder.length < 48 && !folder.includes(",")) return `${folder}/troupe-${name}`;
  }
  return `/tmp/troupe-${name}`;
}

/**
 * Opens a gate on a Unix socket, in a folder that is made for it.
 *
 * @returns nothing where there can be none
 */
export function openAt(path: string, open: (path: string) => Pick<Gate, "close">): Pick<Gate, "close"> | undefined {
  const folder = folderOf(path);
  const remove = (path: string) => {
    try {
      Deno.removeSync(path);
    } catch {
      // not there, or a folder that others still use
    }
  };
  try {
    Deno.mkdirSync(folder, { recursive: true, mode: 0o700 });
    const { isDirectory, mode } = Deno.lstatSync(folder);
    if (!isDirectory || ((mode ?? 0) & 0o077) !== 0) return undefined;
    remove(path); // of a rank that was killed
    const gate = open(path);
    return {
      async close() {
        await gate.close();
        remove(path);
        remove(folder);
      },
    };
  } catch {
    remove(folder);
    return undefined; // ranks meet over TCP then, which tells what is wrong with the host, if anything is
  }
}
