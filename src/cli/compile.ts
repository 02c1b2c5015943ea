/**
 * Makes one file, `dist/troupe`, that runs on a machine with nothing installed.
 *
 * Two forms. `deno compile` embeds the program in Deno's bare runtime, which it must download from where npm does not
 * reach. Where that fails: a shell script followed by an archive of Deno itself, the bundled program and its
 * configurations, which unpacks once into the user's cache folder.
 *
 *     deno task compile [--bundle]      --bundle does not try the first form
 */
import manifest from "../../deno.json" with { type: "json" };
import { programFile } from "./self.ts";

/** What the program reads of its own: the demo must train from the one file. */
const included = ["configs", "LICENSE"];

const output = "dist/troupe";
const work = "dist/.making";
const made = `${work}/troupe`;

/** Permissions as the `train` task grants them, so that they stand in one place. */
const trainTask: string = manifest.tasks.train;

/** As the launcher does: Deno's OpenGL compiles shaders for minutes. */
const noOpenGl = 'export DENO_WEBGPU_BACKEND="${DENO_WEBGPU_BACKEND:-vulkan}"\n';

/**
 * The shell script in front of the archive. It needs sh, tail, tar, gzip and the usual small tools.
 *
 * @param key Names the content: another content unpacks to another folder.
 * @param payloadBytes Size of the archive, by which a file that was cut short is recognised.
 */
export function stub(key: string, payloadBytes: number): string {
  const command = trainTask.replace("src/cli/main.ts train", '--no-config --no-lock "$app/app.js" "$@"');
  const lines = `#!/bin/sh
# Troupe and all that it needs. The first start unpacks it into the user's cache folder.
set -eu
fail() { printf 'troupe: %s\\n' "$*" >&2; exit 1; }
cache=\${XDG_CACHE_HOME:-\${HOME:+$HOME/.cache}}
[ -n "$cache" ] || fail "there is no place to unpack to; set HOME or XDG_CACHE_HOME"
case $cache in *,*) fail "Deno allows no folder with a comma in its name, such as $cache; set XDG_CACHE_HOME" ;; esac
app="$cache/troupe/app-${key}"
if [ ! -f "$app/app.js" ]; then
  [ "$(tail -n +@LINES@ -- "$0" | wc -c)" -eq ${payloadBytes} ] || fail "$0 is damaged or was cut short; fetch it again"
  mkdir -p "$cache/troupe" && new=$(mktemp -d "$cache/troupe/unpacking.XXXXXX") ||
    fail "cannot write to $cache; set XDG_CACHE_HOME to a folder that can be written to"
  trap 'rm -rf "$new"' EXIT
  trap 'exit 130' INT TERM HUP
  tail -n +@LINES@ -- "$0" | gzip -dc | tar -xf - -C "$new" ||
    fail "cannot unpack into $new; is there room for 150 MB?"
  # The folder appears whole. Where another start was first, this one goes, or lands within and is removed.
  mv "$new" "$app" 2>/dev/null || :
  rm -rf "$new" "$app/\${new##*/}"
  trap - EXIT INT TERM HUP
fi
app=$(cd "$app" && pwd -P)
: "\${TROUPE_WRITE:=}" "\${TROUPE_NET:=}"
export PATH="$app:$PATH" DENO_NO_UPDATE_CHECK=1 XDG_RUNTIME_DIR="\${XDG_RUNTIME_DIR:-/tmp}"
${Deno.build.os === "linux" ? noOpenGl : ""}exec ${command}
`;
  return lines.replaceAll("@LINES@", String(lines.split("\n").length));
}

/** Runs a command; its words are the error where it fails. */
async function run(command: string, args: readonly string[], signal?: AbortSignal): Promise<string> {
  const { success, stdout, stderr } = await new Deno.Command(command, {
    args: [...args],
    env: { NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
    ...(signal ? { signal } : {}),
  }).output();
  const decoder = new TextDecoder();
  if (!success) {
    const [said] = decoder.decode(stderr).split("\n\nStack backtrace");
    throw new Error(`Cannot run ${command} ${args[0]}: ${said.trim() || "it failed"}`);
  }
  return decoder.decode(stdout);
}

/** The bare runtime with the program embedded. Its permissions are fixed: what the variables of a task add, it lacks. */
async function compileBinary(): Promise<void> {
  const flags = [...trainTask.matchAll(/"?(--allow-[a-z]+)(=[^\s"$]*)?/g)].map(([, name, value = ""]) =>
    // It starts itself, under whatever name it was given.
    name === "--allow-run" ? name : name + value
  );
  const includes = included.map((path) => `--include=${path}`);
  const args = ["compile", "--quiet", "--no-prompt", ...flags, ...includes, `--output=${made}`, "src/cli/main.ts"];
  // Behind some firewalls the download neither fails nor ends.
  await run("deno", args, AbortSignal.timeout(180_000));
  // By way of sh: Deno lets no program both write a file and run it.
  const report = await run("sh", ["-c", `./${made} doctor --json`], AbortSignal.timeout(60_000));
  if (!report.includes('"form":"compiled"')) {
    throw new Error("Cannot use what deno compile made: it does not run the program");
  }
}

async function compileBundle(): Promise<void> {
  const content = `${work}/content`;
  await Deno.mkdir(content, { recursive: true });
  await run("deno", ["bundle", "--quiet", `--output=${content}/app.js`, "src/cli/main.ts"]);
  for (const path of included) await copy(path, `${content}/${path}`);
  await Deno.copyFile(Deno.execPath(), `${content}/deno`);
  await Deno.chmod(`${content}/deno`, 0o755);
  const archive = `${work}/archive.tar.gz`;
  await run("tar", ["-czf", archive, "-C", content, ...[...Deno.readDirSync(content)].map(({ name }) => name).sort()]);
  const payload = await Deno.readFile(archive);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", payload));
  await Deno.writeTextFile(made, stub(digest.slice(0, 8).toHex(), payload.length));
  await Deno.writeFile(made, payload, { append: true });
  await Deno.chmod(made, 0o755);
}

async function copy(from: string, to: string): Promise<void> {
  if (!(await Deno.stat(from)).isDirectory) return await Deno.copyFile(from, to);
  await Deno.mkdir(to, { recursive: true });
  for await (const { name } of Deno.readDir(from)) await copy(`${from}/${name}`, `${to}/${name}`);
}

async function compile(tryBinary: boolean): Promise<void> {
  Deno.chdir(programFile("."));
  await Deno.mkdir(work, { recursive: true });
  let form = "one binary by deno compile";
  try {
    try {
      if (tryBinary) await compileBinary();
    } catch (error) {
      // Deno tells a chain of causes, the last of which is why.
      const why = (error as Error).message.trim().split("\n").at(-1)!.replace(/^\s*\d+: /, "");
      console.error(`No binary by deno compile (${why}): Deno itself goes into the file.`);
      tryBinary = false;
    }
    if (!tryBinary) {
      form = "bundle that unpacks itself";
      await compileBundle();
    }
    await Deno.rename(made, output);
  } finally {
    await Deno.remove(work, { recursive: true });
  }
  const { size } = await Deno.stat(output);
  console.log(`${output}: ${form}, ${(size / 1e6).toFixed(1)} MB`);
}

const usage = `Usage: troupe compile [--bundle]

Makes ${output}: one file that holds Troupe, Deno and the demo, for machines with nothing installed. deno compile makes a
binary of it; where that cannot fetch its runtime, the file unpacks itself into the user's cache folder at its first start.

  --help    Show this text
  --bundle  The form that unpacks itself, at once`;

if (import.meta.main && Deno.args.includes("--help")) console.log(usage);
else if (import.meta.main) {
  const unknown = Deno.args.find((argument) => argument !== "--bundle");
  try {
    if (unknown !== undefined) throw new Error(`there is no argument ${unknown}; there is --bundle`);
    await compile(!Deno.args.includes("--bundle"));
  } catch (error) {
    console.error(`troupe compile: ${(error as Error).message}`);
    Deno.exitCode = 1;
  }
}
