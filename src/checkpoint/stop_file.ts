/**
 * The stop file: a number that people write to save, or to save and stop, at a step. Positive: save and stop at that
 * step. Negative: save there and go on. 0: nothing.
 */
import { fileError } from "./durable.ts";

/** Creates the file with `0`, as a run does at its start. */
export async function createStopFile(path: string): Promise<void> {
  try {
    await Deno.writeTextFile(path, "0\n");
  } catch (error) {
    throw fileError("create stop file", path, error);
  }
}

/** Reads the number. A file that is gone counts as 0. */
export async function readStopFile(path: string): Promise<number> {
  let text: string;
  try {
    text = await Deno.readTextFile(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return 0;
    throw fileError("read stop file", path, error);
  }
  return parseStopFile(text, path);
}

/** @throws {SyntaxError} for anything but an integer. Empty is 0: an editor may be in the middle of writing. */
export function parseStopFile(text: string, path: string): number {
  const trimmed = text.trim();
  const value = trimmed === "" ? 0 : Number(trimmed);
  if (/^[+-]?\d*$/.test(trimmed) && Number.isSafeInteger(value)) return value;
  throw new SyntaxError(
    `Cannot read stop file ${path}: it must hold one integer, such as 500 (save and stop at step 500), ` +
      `-500 (save at step 500 and go on) or 0: current value is ${JSON.stringify(trimmed.slice(0, 40))}`,
  );
}
