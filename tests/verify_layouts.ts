/**
 * Reference trainings on every layout of `layouts_table.ts` that fits them, by real processes of `troupe verify`, one
 * layout after the other unless asked otherwise. Takes an hour of a core or two; with `--out` it goes on where it was
 * stopped.
 *
 *     ./troupe verify_layouts [FOLDER...] [--backend cpu] [--only TEXT] [--out results.jsonl] [--jobs 1] [--in_memory]
 *
 * `--jobs`: layouts side by side, each with processes of its own, where there are cores for them.
 * `--in_memory` has the ranks of a layout in this thread instead, on the CPU backend: a quarter of the work, as their
 * programs are compiled once, and none of it is processes and sockets.
 */
import { openBackend } from "../src/backend/open.ts";
import { ArgumentError, createParser, type ParsedArguments } from "../src/cli/parser.ts";
import { withheldVariables } from "../src/cli/self.ts";
import { ConfigError } from "../src/config/mod.ts";
import { verify as replay, type VerifyReport } from "../src/train/verify.ts";
import { goldenPath } from "./golden_dir.ts";
import { type Layout, layouts } from "./layouts_table.ts";
import { together } from "./worlds.ts";

interface Arguments extends ParsedArguments {
  readonly folders: readonly string[];
  readonly backend: string;
  readonly only: string | undefined;
  readonly out: string | undefined;
  readonly jobs: number;
  readonly in_memory: boolean;
  readonly help: boolean;
}

/** A command line that is not understood ends the program before an hour's work. */
function parsedOrEnd(): Arguments {
  try {
    return parser.parse(Deno.args);
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    console.error(`verify_layouts: ${error.message}`);
    Deno.exit(2);
  }
}

interface Result {
  readonly layout: string;
  readonly folder: string;
  readonly backend: string;
  readonly outcome: "pass" | "FAIL" | "does not fit";
  /** Largest error of a loss, and of a gradient norm over that norm. */
  readonly loss?: number;
  readonly gradNorm?: number;
  /** Where it fails at a tie of two experts: the step, and what a replay with the other one came to. */
  readonly tie?: { readonly step: number; readonly pass: boolean; readonly loss: number; readonly gradNorm: number };
  /** What was said where nothing was measured. */
  readonly because?: string;
}

/** What is kept of a report. */
function measured({ pass, maxLossError: loss, maxGradNormRelError: gradNorm, tie }: VerifyReport) {
  const outcome = pass ? "pass" as const : "FAIL" as const;
  if (!tie) return { outcome, loss, gradNorm };
  const { step, otherwise: { pass: passes, maxLossError, maxGradNormRelError } } = tie;
  return { outcome, loss, gradNorm, tie: { step, pass: passes, loss: maxLossError, gradNorm: maxGradNormRelError } };
}

const nameOf = (folder: string): string => folder.split("/").at(-1)!;

/** A layout's settings as `--set` takes them. */
function changes({ parallel = {}, model = {}, hybrid_zero_optimizer = {} }: Layout): string[] {
  const leaves = (path: string, value: unknown): string[] =>
    typeof value === "object"
      ? Object.entries(value as Record<string, unknown>).flatMap(([key, inner]) => leaves(`${path}.${key}`, inner))
      : ["--set", `${path}=${value}`];
  return Object.entries({ parallel, model, hybrid_zero_optimizer }).flatMap(([path, value]) => leaves(path, value));
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream) {
    const lines = (text + decoder.decode(chunk, { stream: true })).split("\n");
    text = lines.pop()!;
    yield* lines;
  }
}

/** The same by ranks in this thread. */
async function* verifyInMemory(layout: string, folders: readonly string[], backend: string): AsyncGenerator<Result> {
  const { ranks } = layouts[layout]!;
  const set = changes(layouts[layout]!).filter((word) => word !== "--set");
  for (const folder of folders) {
    const about = { layout, folder: nameOf(folder), backend };
    try {
      const [report] = await together(ranks, async (world) => {
        using backend = await openBackend("cpu");
        return await replay(folder, { backend, nproc: ranks, set, world });
      });
      yield { ...about, ...measured(report!) };
    } catch (error) {
      yield {
        ...about,
        outcome: error instanceof ConfigError ? "does not fit" : "FAIL",
        because: (error as Error).message,
      };
    }
  }
}

/** Replays folders one after the other on the same processes, and yields what became of each as it is known. */
async function* verify(layout: string, folders: readonly string[], backend: string): AsyncGenerator<Result> {
  const child = new Deno.Command("deno", {
    args: ["task", "--quiet", "verify", ...folders, "--backend", backend, "--json"]
      .concat(["--nproc", String(layouts[layout]!.ranks)], changes(layouts[layout]!)),
    env: withheldVariables(),
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const stderr = new Response(child.stderr).text(), left = [...folders];
  for await (const line of linesOf(child.stdout)) {
    const report: VerifyReport & { readonly refused?: string } = JSON.parse(line);
    const about = { layout, folder: nameOf(left.shift()!), backend };
    yield report.refused === undefined
      ? { ...about, ...measured(report) }
      : { ...about, outcome: "does not fit", because: report.refused };
  }
  const { code } = await child.status;
  if (left.length === 0) return;
  const because = [...new Set((await stderr).trim().split("\n").filter((line) => !line.startsWith("step ")))].slice(-4)
    .join(" | ");
  // A single folder that does not fit is told by exit code 2; anything else ended the processes at the first that is left.
  const outcome = code === 2 && folders.length === 1 ? "does not fit" : "FAIL";
  yield { layout, folder: nameOf(left.shift()!), backend, outcome, because };
  if (left.length > 0) yield* verify(layout, left, backend);
}

const summary = "replay reference trainings on every layout that fits them";
const parser = createParser<Arguments>()
  .addArgument("folders", { nargs: "*", help: "Reference trainings; those of tests/golden/hf if left out" })
  .addArgument("--backend", { choices: ["cpu", "webgpu"], default: "cpu", help: "What computes" })
  .addArgument("--only", { help: "Layouts whose name contains this" })
  .addArgument("--out", { help: "File of results, as JSON lines; those that it has are not measured again" })
  .addArgument("--jobs", { type: "int", default: 1, help: "Layouts side by side" })
  .addArgument("--in_memory", { type: "flag", help: "All ranks of a layout in one thread, on the CPU backend" });
const parsed = parsedOrEnd();
if (parsed.help) {
  console.log(parser.help("verify_layouts", summary));
  Deno.exit();
}
const { folders, backend: computes, only = "", out, in_memory, jobs } = parsed;
const backend = in_memory ? "cpu, in memory" : computes;
const all = folders.length > 0
  ? folders.map(String)
  : [...Deno.readDirSync(goldenPath("hf"))].filter((entry) => entry.isDirectory).map(({ name }) =>
    goldenPath("hf", name)
  );
const done: Result[] = [];
try {
  if (out) done.push(...Deno.readTextFileSync(out).trim().split("\n").filter(Boolean).map((line) => JSON.parse(line)));
} catch (error) {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}
/** Layouts that say something of a folder's model: one of experts says nothing of a model without. */
function layoutsOf(folder: string): string[] {
  const model = JSON.parse(Deno.readTextFileSync(`${folder}/config.json`));
  const mixture = (model.num_local_experts ?? model.num_experts ?? 1) > 1;
  return Object.keys(layouts).filter((name) =>
    name.includes(only) && (mixture || !(layouts[name]!.runs ?? []).some((run) => /mix|moe/.test(run)))
  );
}

const told = new Map<string, number>();
const waiting = Object.keys(layouts);
await Promise.all(Array.from({ length: Math.max(1, jobs) }, async () => {
  for (let layout; (layout = waiting.shift()) !== undefined;) await onLayout(layout);
}));
console.log([...told].map(([outcome, count]) => `${count} ${outcome}`).join(", "));
Deno.exit(told.has("FAIL") ? 1 : 0);

async function onLayout(layout: string): Promise<void> {
  const rows = all.filter((folder) => layoutsOf(folder).includes(layout));
  const isKnown = (result: Result, folder: string) =>
    result.layout === layout && result.backend === backend && result.folder === nameOf(folder);
  const known = rows.flatMap((folder) => done.find((result) => isKnown(result, folder)) ?? []);
  const fresh = rows.filter((folder) => !known.some((result) => isKnown(result, folder)));
  known.forEach(tell);
  if (fresh.length === 0) return;
  for await (const result of (in_memory ? verifyInMemory : verify)(layout, fresh, backend)) {
    if (out) Deno.writeTextFileSync(out, `${JSON.stringify(result)}\n`, { append: true });
    tell(result);
  }
}

function tell(result: Result): void {
  const text = (loss: number, gradNorm: number) =>
    `loss ${loss.toExponential(1)}, gradient norm ${gradNorm.toExponential(1)}`;
  const errors = result.loss === undefined ? result.because : text(result.loss, result.gradNorm!), { tie } = result;
  const otherwise = tie
    ? `; step ${tie.step} hangs on a tie of two experts, with the other one ${tie.pass ? "pass" : "FAIL"}: ${
      text(tie.loss, tie.gradNorm)
    }`
    : "";
  console.log(`${result.outcome}  ${result.folder} on ${result.layout} (${result.backend}): ${errors}${otherwise}`);
  told.set(result.outcome, (told.get(result.outcome) ?? 0) + 1);
}
