/**
 * Command-line arguments: InternEvo's own, Troupe's, and those a user adds.
 *
 * Names are declared with underscores and may be typed with dashes. What is declared decides the type of a value;
 * anything else is an error that names the nearest argument.
 */
import { parseArgs } from "@std/cli";
import { nearest } from "../config/nearest.ts";

export interface ArgumentOptions {
  /** `flag` takes no value; `int` and `float` are checked. @default {"str"} */
  readonly type?: "str" | "int" | "float" | "flag";
  readonly default?: unknown;
  readonly choices?: readonly string[];
  readonly help?: string;
  /** The argument may be given several times, and its value is a list. */
  readonly repeat?: boolean;
  /** The verbs whose help shows the argument; all of them if absent, and none where the program gives it to itself. */
  readonly verbs?: readonly string[];
  /** How many words an argument without dashes takes: exactly one, at most one, or any number. @default {"1"} */
  readonly nargs?: "1" | "?" | "*";
}

/** A command line that cannot be understood. The message is one line for the user. */
export class ArgumentError extends Error {
  override readonly name = "ArgumentError";
}

export interface ParsedArguments {
  /** The arguments that were on the command line, as opposed to defaults. */
  readonly given: ReadonlySet<string>;
  readonly [name: string]: unknown;
}

/** What `getDefaultParser` declares. */
export interface DefaultArguments extends ParsedArguments {
  readonly config: string | undefined;
  readonly launcher: "slurm" | "torch";
  readonly host: string | undefined;
  readonly port: number;
  readonly world_size: number | undefined;
  readonly rank: number | undefined;
  readonly local_rank: number | undefined;
  readonly backend: "webgpu" | "cpu" | "null" | "nccl" | undefined;
  readonly seed: number;
  readonly profiling: boolean;
  readonly retune: boolean;
  readonly enable_ali_topology: boolean;
  readonly disable_volc_topology: boolean;
  readonly set: readonly string[];
  readonly nproc: number | undefined;
  readonly join: boolean;
  readonly resume: boolean;
  readonly json: boolean;
  readonly help: boolean;
}

export interface ArgumentParser<Parsed extends ParsedArguments = ParsedArguments> {
  /** Declares `--name`, or a word by its place if the name has no dashes. Returns the parser itself. */
  addArgument(name: string, options?: ArgumentOptions): ArgumentParser<Parsed>;
  /** @throws {ArgumentError} If an argument is unknown, lacks its value, or has one of the wrong kind. */
  parse(args: readonly string[]): Parsed;
  /** The usage of a verb and its arguments, aligned. */
  help(verb?: string, summary?: string): string;
}

interface Declared extends ArgumentOptions {
  readonly key: string;
  readonly type: "str" | "int" | "float" | "flag";
}

/**
 * A parser without arguments but `--help`.
 *
 * @example
 * ```ts
 * import { createParser } from "./parser.ts";
 * const parser = createParser().addArgument("--user_arg", { type: "int", default: -1, help: "An argument of yours" });
 * console.assert(parser.parse(["--user-arg", "3"]).user_arg === 3);
 * ```
 */
export function createParser<Parsed extends ParsedArguments = ParsedArguments>(): ArgumentParser<Parsed> {
  const named = new Map<string, Declared>();
  const placed: Declared[] = [];

  const parser: ArgumentParser<Parsed> = { addArgument, parse, help };
  return parser.addArgument("--help", { type: "flag", help: "Show this text" });

  function addArgument(name: string, options: ArgumentOptions = {}): ArgumentParser<Parsed> {
    const key = name.replace(/^--/, "").replaceAll("-", "_");
    if (!/^[a-z]\w*$/i.test(key) || key === "given") {
      throw new TypeError(`Cannot declare the argument "${name}": a name is letters, digits and underscores`);
    }
    if (named.has(key) || placed.some((other) => other.key === key)) {
      throw new TypeError(`Cannot declare the argument "${name}": it is declared already`);
    }
    const declared = { type: "str", ...options, key } as const;
    if (name.startsWith("--")) named.set(key, declared);
    else placed.push(declared);
    return parser;
  }

  function parse(args: readonly string[]): Parsed {
    const flags = [...named.values()].filter(({ type }) => type === "flag").map(({ key }) => key);
    const valued = [...named.values()].filter(({ type }) => type !== "flag").map(({ key }) => key);
    const raw = parseArgs(normalise(args), {
      boolean: flags,
      // "_" keeps words by place as they were typed
      string: [...valued, "_"],
      collect: [...valued, ...flags],
      unknown: (argument, key) => {
        if (key !== undefined) throw unknown(argument);
      },
    });

    const parsed: Record<string, unknown> = {};
    const given = new Set<string>();
    for (const declared of named.values()) {
      const values = raw[declared.key] as unknown[];
      if (values.length > 0) given.add(declared.key);
      if (declared.type === "flag") parsed[declared.key] = values.at(-1) ?? declared.default ?? false;
      else if (declared.repeat) parsed[declared.key] = values.map((value) => convert(declared, value as string));
      else if (values.length > 0) parsed[declared.key] = convert(declared, values.at(-1) as string);
      else parsed[declared.key] = declared.default;
    }

    // --help is answered whatever else is missing.
    const words = raw._.map(String);
    for (const declared of placed) {
      if (declared.nargs === "*") parsed[declared.key] = words.splice(0).map((word) => convert(declared, word));
      else if (words.length > 0) parsed[declared.key] = convert(declared, words.shift()!);
      else if (declared.nargs === "?" || parsed.help === true) parsed[declared.key] = declared.default;
      else throw new ArgumentError(`${declared.key} is missing: ${declared.help ?? "a value is needed"}`);
    }
    if (words.length > 0) throw new ArgumentError(`"${words[0]}" is not understood here; ${listing()}`);
    return { ...parsed, given } as unknown as Parsed;
  }

  /** Dashes inside names become underscores, and a value that begins with a dash is tied to its name. */
  function normalise(args: readonly string[]): string[] {
    const result: string[] = [];
    for (let index = 0; index < args.length; index++) {
      if (args[index] === "--") return [...result, ...args.slice(index)];
      const [, name, rest] = args[index].match(/^--([^=]+)(=.*)?$/s) ?? [];
      if (name === undefined) {
        if (/^-./.test(args[index])) throw unknown(args[index]);
        result.push(args[index]);
        continue;
      }
      const key = name.replaceAll("-", "_");
      const declared = named.get(key);
      if (declared === undefined) throw unknown(args[index]);
      if (declared.type === "flag") {
        if (rest !== undefined && !/^=(true|false)$/.test(rest)) {
          throw new ArgumentError(`--${key} takes no value: saw "${rest.slice(1)}"`);
        }
        result.push(`--${key}${rest ?? "=true"}`);
        continue;
      }
      if (rest !== undefined) {
        result.push(`--${key}${rest}`);
        continue;
      }
      const value = args[index + 1];
      if (value === undefined || (value.startsWith("-") && !/^-\.?\d/.test(value) && value !== "-")) {
        throw new ArgumentError(
          `--${key} needs a value${value === undefined ? "" : `: saw ${value}`}${example(declared)}`,
        );
      }
      result.push(`--${key}=${value}`);
      index++;
    }
    return result;
  }

  function unknown(argument: string): ArgumentError {
    const name = argument.replace(/^-+/, "").split("=")[0].replaceAll("-", "_");
    const close = nearest(name, shownNames());
    const asked = argument.split("=")[0];
    return new ArgumentError(
      close === undefined
        ? `There is no argument ${asked}; ${listing()}`
        : `There is no argument ${asked}; --${close} is the nearest`,
    );
  }

  /** Not those that the program gives itself, which no verb's help shows. */
  function shownNames(): string[] {
    return [...named.values()].filter(({ verbs }) => verbs?.length !== 0).map(({ key }) => key);
  }

  function listing(): string {
    return `the arguments are ${
      [...placed.map(({ key }) => key), ...shownNames().map((key) => `--${key}`)].join(", ")
    }`;
  }

  function help(verb = "VERB", summary?: string): string {
    const shown = (declared: Declared) =>
      declared.verbs === undefined || verb === "VERB" || declared.verbs.includes(verb);
    const rows = [...placed, ...named.values()].filter(shown).map((
      declared,
    ) => [label(declared, placed), explain(declared)]);
    const column = Math.max(...rows.map(([left]) => left.length)) + 4;
    const words = placed.map(({ key, nargs }) => {
      const word = key.toUpperCase();
      return nargs === "*" ? ` [${word}…]` : nargs === "?" ? ` [${word}]` : ` ${word}`;
    });
    return [
      `Usage: troupe ${verb}${words.join("")} [arguments]`,
      ...(summary === undefined ? [] : ["", summary]),
      "",
      ...rows.flatMap(([left, right]) =>
        wrap(right, 100 - column).map((line, index) => (index === 0 ? `  ${left}` : "").padEnd(column) + line)
      ),
      "",
    ].join("\n");
  }
}

function convert(declared: Declared, value: string): unknown {
  const { type, choices, key } = declared;
  if (value === "") throw new ArgumentError(`--${key} needs a value: saw none${example(declared)}`);
  if (choices !== undefined && !choices.includes(value)) {
    const close = nearest(value, choices);
    throw new ArgumentError(
      `--${key}: "${value}" is not one of ${choices.join(", ")}${
        close === undefined ? "" : `; ${close} is the nearest`
      }`,
    );
  }
  if (type === "int" && !/^[+-]?\d+$/.test(value)) {
    throw new ArgumentError(`--${key}: "${value}" is not a whole number${example(declared)}`);
  }
  if (type === "float" && !Number.isFinite(Number(value))) {
    throw new ArgumentError(`--${key}: "${value}" is not a number${example(declared)}`);
  }
  return type === "int" || type === "float" ? Number(value) : value;
}

function example({ key, type, choices, default: standard }: Declared): string {
  const value = choices?.[0] ?? standard ?? { int: 1, float: 0.5, str: "…", flag: "" }[type];
  return `; --${key} ${value} would work`;
}

function label({ key, type, choices }: Declared, placed: readonly Declared[]): string {
  if (placed.some((other) => other.key === key)) return key.toUpperCase();
  if (type === "flag") return `--${key}`;
  return `--${key} ${choices?.join("|") ?? { str: "TEXT", int: "N", float: "X" }[type]}`;
}

function explain({ help = "", default: standard, repeat, type }: Declared): string {
  if (repeat) return `${help} (may be repeated)`;
  return standard === undefined || type === "flag" ? help : `${help} (default ${standard})`;
}

function wrap(text: string, width: number): string[] {
  const lines = [""];
  for (const word of text.split(" ")) {
    const last = lines.length - 1;
    if (lines[last] === "") lines[last] = word;
    else if (lines[last].length + 1 + word.length <= width) lines[last] += ` ${word}`;
    else lines.push(word);
  }
  return lines;
}

/**
 * A parser with the arguments that every run knows. Add your own before parsing.
 *
 * @example
 * ```ts
 * import { getDefaultParser } from "./parser.ts";
 * const parser = getDefaultParser();
 * parser.addArgument("--user_arg", { type: "int", default: -1, help: "An argument of yours" });
 * const args = parser.parse(["--config", "configs/demo.yaml", "--set", "model.num_layers=2"]);
 * console.assert(args.user_arg === -1 && args.port === 8888);
 * ```
 */
export function getDefaultParser(): ArgumentParser<DefaultArguments> {
  return createParser<DefaultArguments>()
    .addArgument("--config", { help: "Run record, a YAML file" })
    .addArgument("--set", { repeat: true, help: "Change a field of the record: section.field=value" })
    .addArgument("--nproc", { type: "int", help: "Ranks on this machine; same as --set runtime.nproc=N" })
    .addArgument("--backend", {
      choices: ["webgpu", "cpu", "null", "nccl"],
      help: "What computes; same as --set runtime.backend=…",
    })
    .addArgument("--seed", { type: "int", default: 1024, help: "Seed of weights and dropout" })
    .addArgument("--resume", {
      type: "flag",
      help: "Go on from the newest checkpoint; same as --set ckpt.auto_resume=true",
    })
    .addArgument("--json", {
      type: "flag",
      help: "Standard output carries JSON lines only; text goes to standard error",
    })
    .addArgument("--host", { verbs: ["train"], help: "Address of the root" })
    .addArgument("--port", { verbs: ["train"], type: "int", default: 8888, help: "Port of the root" })
    .addArgument("--join", {
      verbs: ["train"],
      type: "flag",
      help: "Be a member of the run whose root --host and --port name",
    })
    .addArgument("--launcher", {
      verbs: ["train"],
      choices: ["slurm", "torch"],
      default: "slurm",
      help: "Whose environment variables give rank and number of ranks, when they are set",
    })
    .addArgument("--world_size", { verbs: ["train"], type: "int", help: "Ranks in all, for launchers that pass it" })
    .addArgument("--rank", { verbs: ["train"], type: "int", help: "Number of this rank, for launchers that pass it" })
    .addArgument("--local_rank", {
      verbs: ["train"],
      type: "int",
      help: "Number of this rank on its machine, for launchers that pass it",
    })
    .addArgument("--profiling", {
      verbs: ["train"],
      type: "flag",
      help:
        "Leave a profile of the third step in the run's folder, device time by kernel as a table and a trace; and of each " +
        "rank of this host a trace of the five steps after it: passes, reading back, waiting for other ranks, uploads",
    })
    .addArgument("--retune", {
      verbs: ["train", "tune"],
      type: "flag",
      help: "Find the forms of kernels that are fastest on this device anew, whatever was found before",
    })
    .addArgument("--enable_ali_topology", {
      verbs: ["train"],
      type: "flag",
      help: "Accepted for InternEvo's launch scripts; has no effect",
    })
    .addArgument("--disable_volc_topology", {
      verbs: ["train"],
      type: "flag",
      help: "Accepted for InternEvo's launch scripts; has no effect",
    });
}

/**
 * The changes to the run record that arguments stand for, to be given to `loadConfig` as `set`. The user's own `--set`
 * come last and so win. InternEvo's `--backend nccl` is accepted: there is one transport, and a notice says so.
 */
export function recordChanges(
  args: Pick<DefaultArguments, "given" | "set" | "nproc" | "backend" | "seed" | "resume">,
  onNotice: (line: string) => void = () => {},
): string[] {
  const changes: string[] = [];
  if (args.given.has("nproc")) changes.push(`runtime.nproc=${args.nproc}`);
  if (args.backend === "nccl") {
    onNotice("--backend nccl: Troupe has its own transport between ranks; nothing to choose");
  } else if (args.given.has("backend")) changes.push(`runtime.backend=${args.backend}`);
  if (args.given.has("seed")) changes.push(`runtime.seed=${args.seed}`);
  if (args.resume) changes.push("ckpt.auto_resume=true");
  return [...changes, ...args.set];
}
