/** YAML as people write it, with bounds: what no record is, is refused before anything walks through it. */
import { parse } from "@std/yaml";

/** More than any record has, and little enough to be looked through at once: an alias counts as often as it stands there. */
const mostValues = 100_000, deepest = 100;

/**
 * What a YAML file says.
 *
 * @throws {Error} with one line that says what is wrong: the text is no UTF-8 or no YAML, is indented by tabs, or is too
 * large or deep for a record
 *
 * @example
 * ```ts
 * import { parseYamlFile } from "./yaml_text.ts";
 * const record = parseYamlFile(new TextEncoder().encode("model:\n  num_layers: 4\n"));
 * console.assert(JSON.stringify(record) === '{"model":{"num_layers":4}}');
 * ```
 */
export function parseYamlFile(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("it is not UTF-8 text, or no text at all");
  }
  const tab = text.split("\n").findIndex((line) => /^ *\t\s*[^\s#]/.test(line));
  if (tab >= 0) throw new Error(`line ${tab + 1} is indented by a tab, where YAML wants spaces`);
  return parseYaml(text);
}

/** What YAML text says. @throws {Error} as `parseYamlFile` does */
export function parseYaml(text: string): unknown {
  let content: unknown;
  try {
    content = parse(text);
  } catch (error) {
    if (error instanceof RangeError) throw new Error(tooDeep);
    // Its first line, without an excerpt of the text, nor a column where none is known.
    const [line] = (error as Error).message.split("\n");
    throw new Error(line!.replace(/^Cannot read document: /, "").replace(/, column -\d+/, "").replace(/:$/, ""));
  }
  let values = 0;
  const look = (value: unknown, depth: number): void => {
    if (++values > mostValues) throw new Error(`it holds more than ${mostValues.toLocaleString("en")} values`);
    if (depth > deepest) throw new Error(tooDeep);
    if (typeof value === "object" && value !== null) {
      for (const inner of Object.values(value)) {
        look(inner, depth + 1);
      }
    }
  };
  look(content, 0);
  return content;
}

const tooDeep = `it is nested more than ${deepest} levels deep`;
