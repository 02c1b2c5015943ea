/** What a verb of the command line is, and what verbs share. */
import { existsSync } from "node:fs";
import { loadConfig, resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { moduleNames } from "../models/registry.ts";
import { loadPlugins } from "../train/plugins.ts";
import {
  ArgumentError,
  type ArgumentParser,
  type DefaultArguments,
  getDefaultParser,
  recordChanges,
} from "./parser.ts";
import { programFile } from "./self.ts";

export interface Verb {
  /** One line for the list of verbs. */
  readonly summary: string;
  /** @returns the exit code */
  run(args: readonly string[]): Promise<number>;
}

/** Words for people: never on standard output, which `--json` keeps for lines of JSON. */
export const say = (line: string): void => console.error(line);

/** The run record that is meant when none is named. */
const demoConfig = () => programFile("configs/demo.yaml");

/** Fields that name something to read: sought where the user stands, then among the program's own files. */
const readPaths = ["train_folder", "valid_folder", "tokenizer_path"] as const;

function findFiles(written: Record<string, unknown>): void {
  const data = written.data as Record<string, unknown> | undefined;
  for (const field of readPaths) {
    const path = data?.[field];
    if (typeof path !== "string" || path.startsWith("/") || existsSync(path)) continue;
    if (existsSync(programFile(path))) data![field] = programFile(path);
  }
}

type RecordArguments =
  & Pick<DefaultArguments, "given" | "config" | "set" | "nproc" | "backend" | "seed" | "resume">
  & { readonly file?: string | undefined };

/** The arguments of a run, for verbs that take its record as a word too: `troupe train mine.yaml`. */
export const getRecordParser = (): ArgumentParser<DefaultArguments & { readonly file?: string }> =>
  getDefaultParser().addArgument("file", { nargs: "?", help: "Run record; same as --config" }) as never;

function recordFile({ file, config }: RecordArguments): string {
  if (file !== undefined && config !== undefined && file !== config) {
    throw new ArgumentError(`"${file}" and --config ${config} are two run records; one of them would work`);
  }
  return file ?? config ?? demoConfig();
}

/** Reads the record that the command line names, with its changes, and loads its plugins. */
export async function writtenRecord(
  args: RecordArguments,
  { onNotice = say }: { onNotice?: (line: string) => void } = {},
): Promise<Record<string, unknown>> {
  const written = await loadConfig(recordFile(args), { set: recordChanges(args, onNotice) });
  findFiles(written);
  const plugins = (written.runtime as { plugins?: unknown } | undefined)?.plugins;
  if (Array.isArray(plugins)) await loadPlugins(plugins.map(String));
  return written;
}

/** Completes and checks a record whose plugins are loaded. @param options `worldSize`: ranks in all, if not the record's */
export const resolveWritten = (
  written: unknown,
  { onNotice = say, worldSize }: { onNotice?: (line: string) => void; worldSize?: number | undefined } = {},
): ResolvedConfig =>
  resolveConfig(written, { modelTypes: moduleNames(), onNotice, ...(worldSize !== undefined && { worldSize }) });

/** Reads, completes and checks the record that the command line names, with its plugins loaded. */
export const recordFromArguments = async (
  args: RecordArguments,
  options: { onNotice?: (line: string) => void; worldSize?: number | undefined } = {},
): Promise<ResolvedConfig> => resolveWritten(await writtenRecord(args, options), options);

/** A written record without what divides its work: for who starts no ranks, whatever number of them it is for. */
export const undivided = (written: Record<string, unknown>): Record<string, unknown> => {
  const { parallel: _, pipeline: __, ...rest } = written;
  return rest;
};
