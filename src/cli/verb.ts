/** What a verb of the command line is, and what verbs share. */
import { loadConfig, resolveConfig, type ResolvedConfig } from "../config/mod.ts";
import { moduleNames } from "../models/registry.ts";
import { loadPlugins } from "../train/model.ts";
import { type DefaultArguments, recordChanges } from "./parser.ts";

export interface Verb {
  /** One line for the list of verbs. */
  readonly summary: string;
  /** @returns the exit code */
  run(args: readonly string[]): Promise<number>;
}

/** Words for people: never on standard output, which `--json` keeps for lines of JSON. */
export const say = (line: string): void => console.error(line);

/** The run record that configurations start from when none is named. */
export const demoConfig = "configs/demo.yaml";

/** Reads, completes and checks the record that the command line names, with its plugins loaded. */
export async function recordFromArguments(
  args: Pick<DefaultArguments, "given" | "config" | "set" | "nproc" | "backend" | "seed" | "resume">,
  { onNotice = say }: { onNotice?: (line: string) => void } = {},
): Promise<ResolvedConfig> {
  const written = await loadConfig(args.config ?? demoConfig, { set: recordChanges(args, onNotice) });
  const plugins = (written.runtime as { plugins?: unknown } | undefined)?.plugins;
  if (Array.isArray(plugins)) await loadPlugins(plugins.map(String));
  return resolveConfig(written, { modelTypes: moduleNames(), onNotice });
}
