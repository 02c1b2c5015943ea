/** Where reference data lives: the folder named by `GOLDEN_DIR`, else `tests/golden`. */
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

function fromEnvironment(): string | undefined {
  try {
    return Deno.env.get("GOLDEN_DIR") || undefined;
  } catch (error) { // without permission to read the variable the default holds
    if (error instanceof Deno.errors.NotCapable) return undefined;
    throw error;
  }
}

const own = join(dirname(fileURLToPath(import.meta.url)), "golden");
export const goldenDir: string = resolve(fromEnvironment() ?? own);

/** Whether it is Troupe's own, and not of someone who brings other trainings. */
export const ownGoldenData: boolean = fromEnvironment() === undefined;

/** Path of one file or folder of reference data; of Troupe's own, and said so, where a folder brought by someone lacks it. */
export function goldenPath(...parts: string[]): string {
  const path = join(goldenDir, ...parts);
  if (ownGoldenData || existsSync(path) || !existsSync(join(own, ...parts))) return path;
  console.log(`GOLDEN_DIR ${goldenDir} has no ${join(...parts)}: tests/golden's is used`);
  return join(own, ...parts);
}

/** Parses one JSON file of reference data as it stands: "nan", "inf" and "-inf" stay strings. */
export function readGoldenJson<T>(...parts: string[]): T {
  return JSON.parse(Deno.readTextFileSync(goldenPath(...parts))) as T;
}
