/** Writing tokenized files (see `token_file.ts`). */
import { dirname } from "node:path";
import { formatNpy } from "./npy.ts";

export interface TokenFileWriter {
  readonly path: string;
  readonly samples: number;
  readonly tokens: number;
  write(tokens: ArrayLike<number>): void;
  /** Puts `NAME.bin` and `NAME.bin.meta` in place. Before this, neither is to be seen under its name. */
  finish(): void;
  /** Leaves nothing behind, unless `finish` was called. */
  [Symbol.dispose](): void;
}

function fileExists(path: string): boolean {
  try {
    Deno.statSync(path);
    return true;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}

/** Runs `write`, naming the file where the system does not (a full disk has no path in its message). */
function naming<T>(path: string, write: () => T): T {
  try {
    return write();
  } catch (error) {
    throw new Error(`Writing ${path} failed: ${(error as Error).message}`, { cause: error });
  }
}

/** Refuses to write over existing output unless told to. Throws `Deno.errors.AlreadyExists`. */
export function refuseExisting(paths: readonly string[], overwrite: boolean): void {
  const existing = paths.filter(fileExists);
  if (existing.length > 0 && !overwrite) {
    throw new Deno.errors.AlreadyExists(
      `${existing.join(", ")} exists already and is left alone. Another place, or --overwrite, would work`,
    );
  }
}

/**
 * Begins `path` (ending in `.bin`) and its `.meta`, making the folder. Throws `Deno.errors.AlreadyExists` where one is
 * there and `overwrite` is not set.
 */
export function createTokenFile(path: string, options: { overwrite?: boolean } = {}): TokenFileWriter {
  if (!path.endsWith(".bin")) throw new RangeError(`A tokenized file ends in .bin; got ${path}`);
  refuseExisting([path, path + ".meta"], options.overwrite ?? false);
  const partial = path + ".partial";
  const file = naming(path, () => {
    Deno.mkdirSync(dirname(path), { recursive: true });
    return Deno.openSync(partial, { write: true, create: true, truncate: true });
  });
  const encoder = new TextEncoder();
  const table: number[] = [];
  let pending: string[] = [];
  let pendingChars = 0;
  let offset = 0;
  let tokenCount = 0;
  let open = true;
  const flush = () => {
    const bytes = encoder.encode(pending.join(""));
    naming(partial, () => {
      for (let at = 0; at < bytes.length;) at += file.writeSync(bytes.subarray(at));
    });
    pending = [];
    pendingChars = 0;
  };
  return {
    path,
    get samples() {
      return table.length / 2;
    },
    get tokens() {
      return tokenCount;
    },
    write(tokens) {
      const line = `{"tokens": [${Array.prototype.join.call(tokens, ",")}]}\n`;
      table.push(offset, tokens.length);
      offset += line.length; // digits and signs only: a character is a byte
      tokenCount += tokens.length;
      pending.push(line);
      if ((pendingChars += line.length) > 1 << 20) flush();
    },
    finish() {
      flush();
      naming(partial, () => file.syncSync());
      file.close();
      open = false;
      naming(path + ".meta", () => Deno.writeFileSync(partial + ".meta", formatNpy("<i8", 2, table)));
      Deno.renameSync(partial + ".meta", path + ".meta");
      Deno.renameSync(partial, path);
    },
    [Symbol.dispose]() {
      if (open) file.close();
      open = false;
      for (const left of [partial, partial + ".meta"]) if (fileExists(left)) Deno.removeSync(left);
    },
  };
}
