/**
 * The program as it runs, so that it can start itself again: as a process, as a worker, and where its own files lie.
 *
 * It runs in three forms: its sources (`deno run main.ts`), one bundled file (`deno run app.js`), and one binary
 * (`deno compile`).
 */
import { fileURLToPath } from "node:url";
import manifest from "../../deno.json" with { type: "json" };

export type ProgramForm = "source" | "bundle" | "compiled";

export const programForm: ProgramForm = Deno.build.standalone
  ? "compiled"
  : import.meta.url.endsWith("/src/cli/self.ts")
  ? "source"
  : "bundle";

/** The module that everything starts from: the main process, its child processes and its workers. */
export const entryUrl: string = programForm === "bundle" ? import.meta.url : new URL("./main.ts", import.meta.url).href;

/**
 * A file that comes with the program, such as `configs/demo.yaml`, wherever the user stands. In a binary the path lies
 * within the binary: this program can read it, others cannot.
 *
 * @example
 * ```ts
 * import { programFile } from "./self.ts";
 * console.assert(Deno.readTextFileSync(programFile("LICENSE")).startsWith("MIT"));
 * ```
 */
export function programFile(path: string): string {
  const url = new URL(programForm === "bundle" ? "./" : "../../", import.meta.url);
  return fileURLToPath(new URL(path, url));
}

/**
 * Goes where the user stands, so that paths on the command line mean what the user meant: `deno task` starts tasks in
 * the project's folder and names the user's in `INIT_CWD`. Elsewhere (a binary, a bundle, a child process) that
 * variable may be another program's, and the current folder is right already.
 */
export function enterUserFolder(): void {
  const folder = Deno.env.get("INIT_CWD");
  if (programForm === "source" && folder && Deno.cwd() === programFile(".").replace(/\/$/, "")) Deno.chdir(folder);
}

/** What must be the same on all hosts of a run. */
export const programVersion = `${manifest.version} on Deno ${Deno.version.deno}`;

/** `true` grants all. What is absent is denied. */
export interface Permissions {
  readonly read?: true | readonly string[];
  readonly write?: true | readonly string[];
  /** Hosts, with or without a port. */
  readonly net?: true | readonly string[];
  readonly env?: true | readonly string[];
  /** Names of system facts, such as `hostname`. */
  readonly sys?: true | readonly string[];
  /** Programs. */
  readonly run?: true | readonly string[];
  /** Native libraries. */
  readonly ffi?: true | readonly string[];
}

/** What `Deno.Command` takes; `env` comes on top of the parent's environment. */
export interface SelfCommand {
  readonly command: string;
  readonly args: string[];
  readonly env: Record<string, string>;
}

/**
 * How this program starts itself as a child process, in whichever form it runs. A binary's permissions are fixed when
 * it is made; there `permissions` has no effect.
 *
 * @param verb The verb and its arguments.
 * @param permissions What the child may do.
 * @throws {RangeError} On a path with a comma, which Deno's flags cannot express.
 *
 * @example
 * ```ts ignore
 * const { command, args, env } = selfCommand(["rank", "--rank", "0"], { read: true, net: ["127.0.0.1"] });
 * const child = new Deno.Command(command, { args, env, stdin: "piped" }).spawn();
 * ```
 */
export function selfCommand(verb: readonly string[], permissions: Permissions = {}): SelfCommand {
  const env = { DENO_NO_UPDATE_CHECK: "1", ...withheldVariables() };
  if (programForm === "compiled") return { command: Deno.execPath(), args: [...verb], env };
  const config = programForm === "source" ? [`--config=${programFile("deno.json")}`] : ["--no-config", "--no-lock"];
  const args = ["run", "--quiet", "--no-prompt", ...config, ...permissionFlags(permissions), entryUrl, ...verb];
  return { command: denoCommand(), args, env };
}

/**
 * Variables of the dynamic loader, emptied. Who may run one program only may not choose what libraries it loads: Deno
 * refuses to start a child while `LD_LIBRARY_PATH` and its like are set. An empty one in the child tells it why.
 */
export function withheldVariables(): Record<string, string> {
  if (Deno.permissions.querySync({ name: "run" }).state === "granted") return {};
  const names = Object.keys(Deno.env.toObject()).filter((name) => /^(LD|DYLD)_/i.test(name));
  return Object.fromEntries(names.map((name) => [name, ""]));
}

/** The flags of `deno run` that grant these permissions and no others. */
export function permissionFlags(permissions: Permissions): string[] {
  return Object.entries(permissions).flatMap(([name, value]: [string, true | readonly string[] | undefined]) => {
    if (value === undefined || value !== true && value.length === 0) return [];
    if (value === true) return [`--allow-${name}`];
    for (const item of value) {
      if (item.includes(",")) {
        throw new RangeError(`Cannot allow ${name} of ${JSON.stringify(item)}: expected a name without a comma`);
      }
    }
    return [`--allow-${name}=${value.join(",")}`];
  });
}

/**
 * Deno as a command. The path of the running one is best, but `--allow-run=deno` covers it only where `deno` on the
 * PATH is that very file.
 */
export function denoCommand(): string {
  const path = Deno.execPath();
  return Deno.permissions.querySync({ name: "run", command: path }).state === "granted" ? path : "deno";
}
