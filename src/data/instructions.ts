/**
 * Instruction data in Alpaca's form: objects with `instruction`, `output` and maybe `input`, in a JSON list or JSON lines.
 * The prompt is Stanford Alpaca's (https://github.com/tatsu-lab/stanford_alpaca).
 */
import { readLines, type TextFile, type TextFileKinds } from "./documents.ts";

export interface Instruction {
  /** What the model is given: context, never a target. */
  readonly prompt: string;
  /** What it shall answer. */
  readonly text: string;
  readonly path: string;
  /** Bytes read from the file so far. */
  readonly bytesRead: number;
}

export const instructionFileKinds: TextFileKinds = {
  inFolders: /\.(jsonl|ndjson)(\.gz|\.zst)?$/,
  named: /\.(json|jsonl|ndjson)(\.gz|\.zst)?$/,
  words: ".json nor .jsonl, with or without .gz or .zst",
};

/** The prompt of an instruction, up to the place where the answer begins. */
export function alpacaPrompt(instruction: string, input: string): string {
  const paired = input === "" ? "" : ", paired with an input that provides further context";
  return `Below is an instruction that describes a task${paired}. Write a response that appropriately completes the ` +
    `request.\n\n### Instruction:\n${instruction}\n\n` + (input === "" ? "" : `### Input:\n${input}\n\n`) +
    `### Response:\n`;
}

/** Throws `SyntaxError` naming `where`. */
function parseInstruction(record: unknown, where: string): { prompt: string; text: string } {
  const { instruction, input = "", output } = (record ?? {}) as Record<string, unknown>;
  for (const [name, value] of Object.entries({ instruction, input: input ?? "", output })) {
    if (typeof value === "string") continue;
    const names = Object.keys(record ?? {}).join(", ") || "none";
    throw new SyntaxError(`${where}: no text in the field "${name}" (fields: ${names})`);
  }
  return { prompt: alpacaPrompt(instruction as string, (input ?? "") as string), text: output as string };
}

/** All instructions of the files, in order. Throws `SyntaxError` with file and line where one cannot be used. */
export async function* readInstructions(files: readonly TextFile[]): AsyncGenerator<Instruction> {
  for (const file of files) {
    const { path } = file,
      parse = (text: string, where: string): unknown => {
        try {
          return JSON.parse(text);
        } catch {
          throw new SyntaxError(`${where}: not JSON: ${text.slice(0, 60)}`);
        }
      };
    let number = 0, list: string[] | undefined, end = 0;
    for await (const { line, bytesRead } of readLines(file)) {
      number++;
      end = bytesRead;
      if (list === undefined && line.trim() === "") continue;
      if (list === undefined && number === 1 && line.trimStart().startsWith("[")) list = [];
      if (list) list.push(line);
      else {
        const where = `${path}, line ${number}`;
        yield { ...parseInstruction(parse(line, where), where), path, bytesRead };
      }
    }
    if (!list) continue;
    for (const [index, record] of (parse(list.join("\n"), path) as unknown[]).entries()) {
      yield { ...parseInstruction(record, `${path}, entry ${index}`), path, bytesRead: end };
    }
  }
}
