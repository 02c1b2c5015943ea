/**
 * The test command: formatting, lint and types, then every test and every documented example, then one line that
 * counts. With files named, only those are run.
 *
 *     ./troupe test [FILE...] [--filter=TEXT]
 */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { findDawn } from "../backend/webgpu/dawn.ts";
import { withheldVariables } from "./self.ts";

export interface Counts {
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
}

/** The closing line. */
export function formatCounts({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

/** The counts of the summary with which `deno test` ends; `undefined` where there is none. */
export function readCounts(output: string): Counts | undefined {
  // deno-lint-ignore no-control-regex -- colours
  const plain = output.replaceAll(/\x1b\[[0-9;]*m/g, "");
  const steps = String.raw`(?: \(\d+ steps?\))?`;
  const pattern = new RegExp(
    String.raw`^(?:ok|FAILED) \| (\d+) passed${steps} \| (\d+) failed${steps}(?: \| (\d+) ignored${steps})?`,
    "gm",
  );
  const summary = [...plain.matchAll(pattern)].at(-1);
  if (!summary) return undefined;
  const [passed, failed, skipped] = summary.slice(1).map((text) => Number(text ?? 0));
  return { passed, failed, skipped };
}

/** The least that real processes, sockets and files on this machine take. */
function testPermissions(): string[] {
  const temporary = Deno.env.get("TMPDIR") || "/tmp";
  // By name and by path: some tests start the one, some the other. The rest mount a small disk to fill it, where they
  // may, and start the launcher.
  const programs = ["deno", Deno.execPath(), "sh", "mount", "umount"];
  return [
    "--no-prompt",
    "--allow-read",
    "--allow-env",
    `--allow-write=${temporary}`,
    `--allow-run=${programs.join(",")}`,
    "--allow-net=127.0.0.1,localhost",
    "--allow-sys=hostname,systemMemoryInfo,statfs",
    // Native code, where the other WebGPU is there to be tested.
    ...(findDawn() === undefined ? [] : ["--allow-ffi"]),
  ];
}

const decoder = new TextDecoder();

/** Deno colours its output even for a file. */
const environment: Record<string, string> = {
  ...withheldVariables(),
  ...(Deno.stdout.isTerminal() ? {} : { NO_COLOR: "1" }),
  // Mesa's software Vulkan takes twice as long to compile a kernel with LLVM's optimisations as without, which kernels
  // that run a few times on a few rows do not earn back. Its cache keeps the two apart.
  GALLIVM_PERF: Deno.env.get("GALLIVM_PERF") ?? "nopt",
  // Files at a time. Some tests wait for processes: with one more than there are cores, none is idle meanwhile.
  DENO_JOBS: Deno.env.get("DENO_JOBS") ?? String(navigator.hardwareConcurrency + 1),
};

interface Checked {
  readonly success: boolean;
  /** What to say of it, once the tests have had their say. */
  readonly text: string;
}

async function check(name: string, args: readonly string[]): Promise<Checked> {
  const started = performance.now();
  const options = { args: [...args], env: environment, stdout: "piped", stderr: "piped" } satisfies Deno.CommandOptions;
  const { success, stdout, stderr } = await new Deno.Command("deno", options).output();
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const text = `${success ? "ok  " : "FAIL"} ${name} (${seconds} s)`;
  return { success, text: success ? text : `${text}\n${decoder.decode(stdout)}${decoder.decode(stderr)}` };
}

/** Runs tests, passing their words on. */
async function test(args: readonly string[]): Promise<Counts> {
  const preload = fileURLToPath(new URL("../../tests/strict_examples.ts", import.meta.url));
  const child = new Deno.Command("deno", {
    args: ["test", "--quiet", "--parallel", "--doc", `--preload=${preload}`, ...testPermissions(), ...args],
    env: environment,
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  let tail = "";
  for await (const chunk of child.stdout) {
    for (let written = 0; written < chunk.length;) written += await Deno.stdout.write(chunk.subarray(written));
    tail = (tail + decoder.decode(chunk, { stream: true })).slice(-4000);
  }
  const { success } = await child.status;
  const counts = readCounts(tail);
  if (!counts) {
    console.log("The test runner gave no summary: no test was found, or it was ended from outside.");
    return { passed: 0, failed: 1, skipped: 0 };
  }
  return { ...counts, failed: success ? counts.failed : Math.max(1, counts.failed) };
}

/** Paths are meant from where the user stands, which `deno task` leaves in `INIT_CWD`; flags go to `deno test`. */
function locate(argument: string): string {
  return argument.startsWith("-") ? argument : resolve(Deno.env.get("INIT_CWD") ?? ".", argument);
}

/** Files that are named and are not there. */
const missing = import.meta.main
  ? Deno.args.filter((argument) => !/^-|[*?[{]/.test(argument) && !existsSync(locate(argument)))
  : [];

if (import.meta.main && Deno.args.some((argument) => argument === "--help" || argument === "-h")) {
  console.log(
    "Usage: troupe test [FILE...] [--filter=TEXT]\n\n" +
      "Checks formatting, lint and types, then runs every test and every documented example. With files named, only those\n" +
      "are run. Other flags go to `deno test`.",
  );
} else if (import.meta.main && missing.length > 0) {
  for (const name of missing) console.log(`There is no file ${name}: tests are named as seen from where you stand`);
  console.log(`\n${formatCounts({ passed: 0, failed: missing.length, skipped: 0 })}`);
  Deno.exitCode = 1;
} else if (import.meta.main) {
  const named = Deno.args.some((argument) => !argument.startsWith("-"));
  const checks = named ? {} : {
    formatting: ["fmt", "--check"],
    lint: ["lint", "--quiet"],
    "types, examples included": ["check", "--quiet", "--doc", "."],
  };
  // Beside the tests: most of a check runs on one core.
  const checking = Promise.all(Object.entries(checks).map(([name, args]) => check(name, args)));
  // Types are checked above; with files named, here.
  const { passed, failed, skipped } = await test(named ? Deno.args.map(locate) : ["--no-check", ...Deno.args]);
  const checked = await checking, failedChecks = checked.filter(({ success }) => !success).length;
  for (const { text } of checked) console.log(text);
  console.log(`\n${formatCounts({ passed, failed: failed + failedChecks, skipped })}`);
  Deno.exitCode = failed + failedChecks > 0 ? 1 : 0;
}
